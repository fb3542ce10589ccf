"""What a domain's YAML may say."""

import pytest
from pydantic import ValidationError

from moe_lab.data import DataSpec, HFTokenizerSpec
from moe_lab.data.spec import FilesSource, PydocSource


def test_a_domain_decodes_strictly_from_json() -> None:
    text = '{"kind": "data", "name": "d", "sources": [{"type": "files", "paths": ["a/*.md"]}, {"type": "pydoc"}]}'
    spec = DataSpec.model_validate_json(text)
    assert spec.sources == (FilesSource(paths=("a/*.md",)), PydocSource())
    assert DataSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ('"name": "No Spaces"', "name"),
        ('"name": ""', "name"),
        ('"sources": []', "sources"),
        ('"sources": [{"type": "pydoc"}, {"type": "pydoc"}]', "sources"),
        ('"sources": [{"type": "files"}]', "sources.0.files.paths"),
        ('"sources": [{"type": "files", "paths": []}]', "sources.0.files.paths"),
        ('"sources": [{"type": "file"}]', "sources.0"),
        ('"sources": [{"type": "pydoc", "max_bytes": 0}]', "sources.0.pydoc.max_bytes"),
        ('"sources": [{"type": "pydoc", "max_bytes": "5"}]', "sources.0.pydoc.max_bytes"),
        ('"sources": [{"type": "exercises", "levels": [1, "2"]}]', "sources.0.exercises.levels.1"),
        ('"heldout": 0', "heldout"),
        ('"heldout": 0.6', "heldout"),
        ('"longest_document": 100', "longest_document"),
    ],
)
def test_a_mistake_is_one_problem_with_its_place(changed: str, place: str) -> None:
    key = changed.split(":")[0]
    rest = [part for part in ('"name": "d"', '"sources": [{"type": "pydoc"}]') if not part.startswith(key)]
    with pytest.raises(ValidationError) as caught:
        DataSpec.model_validate_json("{" + ", ".join([changed, *rest]) + "}")
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [place]


def test_a_tokenizer_needs_a_path() -> None:
    with pytest.raises(ValidationError, match="path"):
        HFTokenizerSpec(path="")
