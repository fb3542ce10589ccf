"""Guesses change a text's pace and nothing else; what is guessed, how often it is right, and when it pays."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moe_lab.errors import Refused
from moe_lab.generation.drafting import LONGEST, SHORTEST, Luck, NgramDrafter, Pace
from moe_lab.generation.engine import Engine
from moe_lab.generation.reading import count_kept
from moe_lab.generation.requests import Request
from moe_lab.generation.sampling import Draws, Sampling, draw_places
from moe_lab.nn.backends import native
from moe_lab.nn.backends.native import check
from tests.compose.published import FIXED, MODULES, Published
from tests.generation.test_bits import bits, requests, write

compiled = pytest.mark.skipif(native.obstacle_here(np.float32) is not None, reason="checked by the compiled kernel")


@jax.jit
def draw(logits_RSV: Any, place_RS: Any, counts_RS: Any, draws: Draws) -> jax.Array:
    """int32[R, S]."""
    never_V = np.zeros(logits_RSV.shape[-1], bool)
    return draw_places(logits_RSV, place_RS, counts_RS, draws, never_V).token_B


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


@pytest.mark.slow
@pytest.mark.parametrize("case", ["alike", "far apart", "disjoint", "a certain guess", "a certain model"])
def test_what_is_written_follows_the_model_whatever_is_guessed(case: str) -> None:
    """100,000 texts over 30 tokens: what is written at each place, and how many guesses stay, are as computed.

    A guess stays if the model draws it anyway (Leviathan et al. 2023, section 3.1, with drafts of single tokens), so of
    guesses from `g` beside a model `m` the share `sum(m g)` is right, whatever stood before.
    """
    texts, places, words = 25_000, 4, 30
    rng = np.random.default_rng(0)
    spread = {"far apart": 3.0, "a certain model": 30.0}.get(case, 1.0)
    logits_SV = (spread * rng.normal(size=(places, words))).astype(np.float32)
    if case == "disjoint":
        logits_SV[:, 15:] = -np.inf
    model_SV = np.exp(logits_SV - logits_SV.max(-1, keepdims=True)).astype(float)
    model_SV /= model_SV.sum(-1, keepdims=True)
    guess_SV = {
        "alike": model_SV,
        "far apart": rng.dirichlet(np.full(words, 0.2), places),
        "disjoint": np.tile(np.repeat([0.0, 1 / 15], 15), (places, 1)),
        "a certain guess": np.eye(words)[model_SV.argsort(-1)[:, -2]],
        "a certain model": np.full((places, words), 1 / words),
    }[case]
    written: list[list[int]] = [[] for _ in range(places)]
    lengths = np.zeros(places, int)
    greedy = Draws.greedy(texts)
    counts_RS = np.ones((texts, places), bool)
    place_RS = np.broadcast_to(np.arange(places, dtype=np.int32), (texts, places))
    logits_RSV = np.broadcast_to(logits_SV, (texts, places, words))
    for batch in range(4):
        seeds = np.arange(batch * texts, (batch + 1) * texts, dtype=np.uint32)
        draws = greedy._replace(temperature_B=np.ones(texts, np.float32), seed_B=seeds)
        drawn_RS = np.asarray(draw(logits_RSV, place_RS, counts_RS, draws))
        guessed_RS = np.stack([rng.choice(words, texts, p=own) for own in guess_SV[:-1]], axis=1)
        kept_R = np.asarray(count_kept(drawn_RS, np.hstack([np.zeros((texts, 1), int), guessed_RS]), counts_RS))
        for place in range(places):
            written[place] += drawn_RS[kept_R > place, place].tolist()
        lengths += np.bincount(kept_R - 1, minlength=places)
    for own, model_V in zip(written, model_SV, strict=True):
        seen, possible = np.bincount(own, minlength=words), model_V * len(own) > 5
        assert not seen[model_V == 0].any()
        if possible.sum() > 1:
            expected = model_V[possible] / model_V[possible].sum() * seen[possible].sum()
            assert stats.chisquare(seen[possible], expected).pvalue > 1e-4
    right_S = (model_SV * guess_SV).sum(-1)[:-1]
    reached = np.concatenate([[1.0], np.cumprod(right_S)])
    law = reached * np.append(1 - right_S, 1.0)
    np.testing.assert_allclose(lengths / lengths.sum(), law, atol=0.006)
