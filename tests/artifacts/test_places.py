"""Nothing that is published says where the author's files lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lab.artifacts.places import without_places
from moe_lab.errors import LabError

LAB = Path("/work/lab")


@pytest.mark.parametrize(
    ("written", "published"),
    [
        ("/work/lab/texts/*.txt", "texts/*.txt"),
        ("/home/ada/client quirin/*.txt", "*.txt"),
        ("file:///home/ada/quirin/poems.txt", "poems.txt"),
        ("/home/ada", "~"),
        ("../../quirin/poems.txt", "poems.txt"),
        ("texts/../../quirin/poems.txt", "poems.txt"),
        ("Learned from ~/quirin/*.txt", "Learned from *.txt"),
        ("poems (/home/ada/quirin/a.txt, ../quirin/b.txt)", "poems (a.txt, b.txt)"),
        ('{"paths":["/home/ada/quirin/*.txt"],"steps":5}', '{"paths":["*.txt"],"steps":5}'),
        *[
            (same, same)
            for same in (
                "texts/*.txt",
                "https://example.org/a/b and s3://bucket/key",
                "MIT or Apache-2.0, 1 / 2 and/or km/h",
                '{"type": "byte"}',
                "and so on...",
            )
        ],
    ],
)
def test_a_path_becomes_a_name(written: str, published: str) -> None:
    for section in ("summary", "licence"):
        assert without_places({section: written}, LAB) == {section: published}
    assert without_places({"data": {"domains": [written]}}, LAB) == {"data": {"domains": [published]}}
    assert without_places({"config": {"ModuleSpec": written}}, LAB) == {"config": {"ModuleSpec": published}}
    assert without_places({"interface": {"groups": [written]}}, LAB) == {"interface": {"groups": [written]}}


def test_a_routers_own_settings_are_refused_instead_because_it_is_built_from_them() -> None:
    settings = '{"type":"lexicon","words":"/home/ada/words.txt"}'
    with pytest.raises(LabError, match=r"/home/ada/words.txt.*name a package, or a file relative to the lab"):
        without_places({"config": {"router": settings}}, LAB)
