"""Tokenised domains: digests, descriptions, the cache, and what is too little text."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

import moe_lab.data
from moe_lab.data import ByteTokenizer, Corpus, DataSpec, Document, Tokenizer, build_corpus, load_corpus
from moe_lab.data.spec import ExercisesSource, FilesSource, PydocSource
from moe_lab.data.tokenizers import HFTokenizer
from moe_lab.errors import LabError

DOCUMENTS = [
    Document("one é\n", "a", split="train"),
    Document("two\n", "b", split="train"),
    Document("copy ab = ab\n", "c", level=1, split="validation"),
    Document("four\n", "d", split="test"),
]


class Counting(HFTokenizer):
    """Counts the texts it encodes."""

    calls = 0

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        self.calls += 1
        return super().encode(text)


@pytest.fixture
def counting(bpe_folder: Path) -> Counting:
    tokenizer = Counting((bpe_folder / "tokenizer.json").read_bytes(), "counting", None)
    tokenizer.calls = 0
    return tokenizer


def equal(first: Corpus, second: Corpus) -> bool:
    return first.digest == second.digest and all(
        np.array_equal(getattr(first.splits[split], field.name), getattr(second.splits[split], field.name))
        for split in first.splits
        for field in dataclasses.fields(first.splits[split])
    )


def test_documents_become_tokens_with_an_end_each() -> None:
    corpus = build_corpus("c", DOCUMENTS, ByteTokenizer())
    train, validation = corpus.splits["train"], corpus.splits["validation"]
    assert train.ids.tolist() == [*"one é\n".encode(), 256, *b"two\n", 256]
    assert train.starts.tolist() == [0, 8, 13]
    assert train.nbytes.tolist() == [1] * 7 + [0] + [1] * 4 + [0]
    assert train.levels.tolist() == [-1, -1]
    assert validation.levels.tolist() == [1]
    assert validation.answer.tolist() == [False] * 10 + [True] * 3 + [False]


def test_describe_counts_what_there_is() -> None:
    corpus = build_corpus("c", DOCUMENTS, ByteTokenizer())
    described = corpus.describe()
    assert described["splits"] == {
        "train": {"documents": 2, "bytes": 11, "tokens": 13},
        "validation": {"documents": 1, "bytes": 13, "tokens": 14},
        "test": {"documents": 1, "bytes": 5, "tokens": 6},
    }
    assert (described["documents"], described["bytes"], described["tokens"]) == (4, 29, 33)
    assert described["digest"] == corpus.digest
    assert json.loads(json.dumps(described)) == described


def test_the_digest_tells_text_split_level_and_tokenizer_apart(bpe: HFTokenizer) -> None:
    def digest(documents: list[Document], tokenizer: Tokenizer | None = None) -> str:
        return build_corpus("c", documents, tokenizer or ByteTokenizer()).digest

    moved = [dataclasses.replace(DOCUMENTS[0], split="test"), *DOCUMENTS[1:]]
    harder = [*DOCUMENTS[:2], dataclasses.replace(DOCUMENTS[2], level=2), DOCUMENTS[3]]
    joined = [Document("one é\ntwo\n", "a", split="train"), *DOCUMENTS[2:]]
    renamed = [dataclasses.replace(document, source="elsewhere") for document in DOCUMENTS]
    digests = [digest(DOCUMENTS), digest(moved), digest(harder), digest(joined), digest(DOCUMENTS, bpe)]
    assert len(set(digests)) == 5
    assert digest(renamed) == digests[0]


def test_loading_does_not_depend_on_the_order_of_sources(tmp_path: Path) -> None:
    sources = (ExercisesSource(count=60), PydocSource())
    there, back = (
        load_corpus(DataSpec(name="d", sources=order, heldout=0.3), ByteTokenizer(), tmp_path)
        for order in (sources, sources[::-1])
    )
    assert equal(there, back)


def test_the_cache_is_read_the_second_time(tmp_path: Path, counting: Counting) -> None:
    first = build_corpus("c", DOCUMENTS, counting, tmp_path / "cache")
    assert counting.calls == 4
    second = build_corpus("c", DOCUMENTS, counting, tmp_path / "cache")
    assert counting.calls == 4
    assert equal(first, second)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{first.digest}.npz"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, counting: Counting, damage: str) -> None:
    first = build_corpus("c", DOCUMENTS, counting, tmp_path)
    path = tmp_path / f"{first.digest}.npz"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[data.index(np.int32(counting.eos_id).tobytes(), data.index(b"train.ids.npy") + 140)] ^= 1
    elif damage == "other":
        np.savez(path, x=np.zeros(3))
        data = bytearray(path.read_bytes())
    path.write_bytes({"cut": bytes(data[: len(data) // 2]), "empty": b""}.get(damage, bytes(data)))
    assert equal(build_corpus("c", DOCUMENTS, counting, tmp_path), first)
    assert counting.calls == 8
    build_corpus("c", DOCUMENTS, counting, tmp_path)
    assert counting.calls == 8


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, counting: Counting) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(LabError, match="cannot write the token cache .*; free some space or name another"):
        build_corpus("c", DOCUMENTS, counting, tmp_path / "cache")


def test_bytes_are_not_cached(tmp_path: Path) -> None:
    spec = DataSpec(name="d", sources=(ExercisesSource(count=60),), heldout=0.3)
    load_corpus(spec, ByteTokenizer(), tmp_path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_too_little_text_to_fill_the_splits(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text\n")
    spec = DataSpec(name="notes", sources=(FilesSource(paths=("a.txt",)),))
    with pytest.raises(LabError, match='data "notes": its 1 documents leave the .* split empty .*; add text'):
        load_corpus(spec, ByteTokenizer(), tmp_path)


def test_one_long_file_fills_all_splits_at_a_smaller_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"this is line {n} of one long text\n" for n in range(3000)))
    source = FilesSource(paths=("a.txt",))
    spec = DataSpec(name="notes", sources=(source,), heldout=0.2, longest_document=1024)
    splits = load_corpus(spec, ByteTokenizer(), tmp_path).describe()["splits"]
    for split in ("validation", "test"):
        assert 0.05 < splits[split]["bytes"] / 100_000 < 0.2


def test_specs_import_nothing_heavy(python: Callable[..., CompletedProcess[str]]) -> None:
    code = (
        "import sys, moe_lab.data, moe_lab.data.spec\n"
        "found = {'numpy', 'pyarrow', 'tokenizers', 'jax'} & set(sys.modules)\n"
        "assert not found, found\n"
        "import moe_lab.data.corpus, moe_lab.data.batches\n"
        "found = {'pyarrow', 'tokenizers', 'jax'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there() -> None:
    for name in moe_lab.data.__all__:
        assert getattr(moe_lab.data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Corpsu'"):
        moe_lab.data.Corpsu  # noqa: B018
