"""How a text looks, counted by hand."""

from __future__ import annotations

import math

import pytest

from moe_lab.questions.features import SHAPE, text_shape


def shape(text: str) -> dict[str, float]:
    return dict(zip(SHAPE, text_shape(text), strict=True))


def test_the_numbers_of_a_text_by_hand() -> None:
    """29 and 23 letters on two lines, and the break; 11 words of 43 letters, one of them twice."""
    assert shape("If 12, which of the following\nis NOT of __ Statement!") == pytest.approx(
        {
            "log characters": math.log(53),
            "log characters of the first line": math.log(30),
            "log lines": math.log(3),
            "share of digits": 2 / 53,
            "share of symbols": 2 / 53,
            "share of capitals": 5 / 53,
            "share of commas": 1 / 53,
            "log characters of the longest line": math.log(30),
            "spread of line lengths": 3.0,
            "mean word length": 43 / 11,
            "share of words that are new": 10 / 11,
            "negated": 1,
            "has a question mark": 0,
            "has a gap to fill": 1,
            "asks which of the following": 1,
            "speaks of statements": 1,
            "has a condition": 1,
        }
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Who?", ["has a question mark"]),
        ("all except one", ["negated"]),
        ("a knot, exceptional, differs by _", []),
        ("IF so", ["has a condition"]),
        ("two Statements", ["speaks of statements"]),
    ],
)
def test_what_a_text_has_and_has_not(text: str, found: list[str]) -> None:
    assert [name for name in SHAPE[-6:] if shape(text)[name]] == found


def test_an_empty_text_has_numbers_too() -> None:
    numbers = shape("")
    assert numbers.pop("log lines") == pytest.approx(math.log(2))
    assert set(numbers.values()) == {0.0}
