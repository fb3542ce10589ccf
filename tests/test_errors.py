"""The words that errors are made of."""

from __future__ import annotations

import pytest

from moe_lab.errors import counted, did_you_mean


@pytest.mark.parametrize(
    ("name", "guess"), [("mine", "mine-router"), ("miner-outer", "mine-router"), ("xyz", None), ("m", None), ("", None)]
)
def test_a_miss_names_the_nearest_or_the_one_that_holds_it(name: str, guess: str | None) -> None:
    said = did_you_mean(name, ["mine-router", "questions/theirs"])
    assert said == (f' Did you mean "{guess}"?' if guess else "") + " Available: mine-router, questions/theirs."


def test_one_is_not_many() -> None:
    assert (counted(1, "problem"), counted(0, "problem"), counted(1200, "problem")) == (
        "1 problem",
        "0 problems",
        "1,200 problems",
    )
