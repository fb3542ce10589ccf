"""Guesses change a text's pace and nothing else; what is guessed, how often it is right, and when it pays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.errors import Refused
from moe_lab.generation.drafting import LONGEST, SHORTEST, Luck, NgramDrafter, Pace
from moe_lab.generation.engine import Engine
from moe_lab.generation.requests import Request
from moe_lab.generation.sampling import Sampling
from moe_lab.nn.backends import native
from moe_lab.nn.backends.native import check
from tests.compose.published import FIXED, MODULES, Published
from tests.generation.test_bits import bits, requests, write

compiled = pytest.mark.skipif(native.obstacle_here(np.float32) is not None, reason="checked by the compiled kernel")


def by_brute_force(text: list[int], most: int) -> list[int]:
    """What stood behind the newest other place of the longest end of the text, going on with the guesses themselves."""
    for length in range(LONGEST, SHORTEST - 1, -1):
        places = [p for p in range(length, len(text)) if len(text) >= length and text[p - length : p] == text[-length:]]
        if places:
            whole = list(text)
            for step in range(most):
                whole.append(whole[places[-1] + step])
            return whole[len(text) :]
    return []


@given(text=st.lists(st.integers(0, 3), max_size=40), cuts=st.lists(st.integers(0, 40)), most=st.integers(1, 9))
@settings(max_examples=200)
def test_guesses_are_those_of_brute_force(text: list[int], cuts: list[int], most: int) -> None:
    drafter, at = NgramDrafter(), 0
    for cut in sorted(cuts):
        drafter.read(text[at:cut])
        at = max(at, cut)
    drafter.read(text[at:])
    assert drafter.guess(most) == by_brute_force(text, most)


def test_luck_follows_what_was_right() -> None:
    luck = Luck()
    assert luck.expect(0) == 0
    before = luck.expect(4)
    for _ in range(30):
        luck.note(4, 4)
    assert luck.expect(4) > 3 > before
    for _ in range(30):
        luck.note(0, 1)
    assert luck.expect(4) < 1


def test_checking_pays_where_it_is_faster_than_writing_one_by_one() -> None:
    pace = Pace()
    assert not pace.worth_it([0.5])
    assert pace.worth_it([1.0])
    for checked, seconds in ((False, 9.0), (True, 9.0), (False, 1.0), (True, 3.0), (True, 3.0)):
        pace.note(checked, seconds)  # the first of each kind may have compiled
    assert not pace.worth_it([1.9])
    assert pace.worth_it([2.2])
    assert not pace.worth_it([4.0, 0.0, 0.0])


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("router", ["gain", "topk"])
def test_a_text_has_the_same_bits_with_and_without_guesses(
    published: Published, router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = published.model(published.lock(f"lab/{router}", MODULES))
    texts = [
        dataclasses.replace(
            text,
            prompt=text.prompt + "abcabcab" * (n % 3),
            sampling=text.sampling.model_copy(update={"max_tokens": 6 + 3 * n, "top_k": (1, 2, 0)[n % 3]}),
            score_prompt=False,
        )
        for n, text in enumerate(requests(8, 5))
    ]
    expected = write(Engine(model, slots=3, capacity=128, chunk=16), texts, list(range(8)))
    monkeypatch.setattr(Pace, "worth_it", lambda self, expected: True)
    engine = Engine(model, slots=3, capacity=128, chunk=16, guesses=4)
    got = write(engine, texts, [5, 3, 1, 0, 2, 4, 6, 7])
    for one, other in zip(expected, got, strict=True):
        assert bits(one) == bits(other)
    assert 0 < engine.right < engine.checked
    assert sum(map(len, got)) > engine.right


@pytest.mark.slow
def test_guesses_are_refused_where_they_cannot_be_checked(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = published.model(published.lock(FIXED, MODULES))
    monkeypatch.setattr(check, "obstacle", lambda: "there is no compiler")
    with pytest.raises(Refused, match="there is no compiler"):
        Engine(model, slots=1, capacity=16, guesses=2)


@compiled
@pytest.mark.slow
def test_the_last_token_of_the_room_is_written_with_guesses_too(published: Published) -> None:
    model = published.model(published.lock(FIXED, MODULES))
    engine = Engine(model, slots=1, capacity=24, chunk=8, guesses=8)
    (steps,) = write(engine, [Request(prompt="ababababa", sampling=Sampling(max_tokens=14, ignore_end=True))], [0])
    assert (len(steps), steps[-1].end) == (14, "length")
