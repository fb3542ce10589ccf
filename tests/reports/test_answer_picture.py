"""A written text drawn: every character in its place, its module's hue, and well-formed whatever was written."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from moe_lab.reports.answer_picture import COLUMNS, WrittenToken, write_answer_picture
from moe_lab.reports.colours import LIGHT

SVG = "{http://www.w3.org/2000/svg}"
TOKENS = [
    WrittenToken("Der", (("berlin/german", 512),)),
    WrittenToken(" <b>\n", (("berlin/german", 128), ("lyon/french", 64))),
    WrittenToken("x" * 200, ()),
    WrittenToken("中\x07é", (("lyon/french", 128),)),
    WrittenToken("", ()),
]


def draw(folder: Path, tokens: list[WrittenToken], prompt: str = "Klicken & ") -> ElementTree.Element:
    return ElementTree.parse(write_answer_picture(prompt, tokens, folder / "answer.svg")).getroot()


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_every_character_is_there_in_order_and_lines_break(tmp_path: Path) -> None:
    said = texts(draw(tmp_path, TOKENS))
    assert "".join(said[:-3]) == "Klicken & Der <b>" + "x" * 200 + "中·é"
    assert max(map(len, said[:-3])) == COLUMNS


def test_hue_is_the_module_and_strength_the_width(tmp_path: Path) -> None:
    blocks = [rect for rect in draw(tmp_path, TOKENS).iter(f"{SVG}rect") if rect.get("fill-opacity")]
    own = [(rect.get("fill"), rect.get("fill-opacity")) for rect in blocks[:3]]
    german, french = LIGHT["module-0"], LIGHT["module-1"]
    assert own == [(german, "0.62"), (german, "0.42"), (french, "0.42")]


def test_the_legend_says_who_chose_how_many(tmp_path: Path) -> None:
    said = texts(draw(tmp_path, TOKENS))
    assert said[-3:] == [
        "berlin/german, 128 · 512 hidden units: 40% of the tokens",
        "lyon/french, 64 · 128 hidden units: 20% of the tokens",
        "the bare trunk: 40% of the tokens",
    ]


@pytest.mark.parametrize("tokens", [[], [WrittenToken("a", ())]])
def test_little_is_drawn_too(tmp_path: Path, tokens: list[WrittenToken]) -> None:
    assert "".join(texts(draw(tmp_path, tokens, prompt="")))[:1] == ("a" if tokens else "")
