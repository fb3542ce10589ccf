"""Text passes on in whole, up to a stop, whatever the pieces it comes in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moe_lab.generation.text import StopStrings

LETTERS = st.text(st.sampled_from("ab"), max_size=12)


def up_to_a_stop(text: str, stops: list[str]) -> str:
    """By definition: letter by letter, until the text ends with a stop; of several the longest."""
    for end in range(1, len(text) + 1):
        here = [stop for stop in stops if text[:end].endswith(stop)]
        if here:
            return text[: end - max(map(len, here))]
    return text


@given(
    text=LETTERS,
    stops=st.lists(st.text(st.sampled_from("ab"), min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
@example(text="abab", stops=["ba", "abab"], cuts=[])
@example(text="aab", stops=["ab"], cuts=[1, 2])
def test_what_passes_is_the_text_up_to_the_first_complete_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    scanner, places = StopStrings(stops), [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    passed = "".join(scanner.add(text[begin:end]) for begin, end in itertools.pairwise(places))
    expected = up_to_a_stop(text, stops)
    assert (scanner.found is not None) == (expected != text)
    assert passed + ("" if scanner.found else scanner.end()) == expected


def test_what_cannot_be_a_stop_any_more_passes_at_once() -> None:
    scanner = StopStrings(["\n\n"])
    assert [scanner.add(piece) for piece in ("a", "\n", "b", "\n", "\n", "c")] == ["a", "", "\nb", "", "", ""]
    assert scanner.found == "\n\n"


@pytest.mark.parametrize("stops", [[], ["x"]])
def test_without_a_stop_all_passes_as_it_comes(stops: list[str]) -> None:
    scanner = StopStrings(stops)
    assert [scanner.add(piece) for piece in ("ab", "", "c")] == ["ab", "", "c"]
    assert scanner.end() == ""
