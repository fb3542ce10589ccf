"""Draws follow the distribution that temperature and cuts leave, and depend on seed and place alone."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moe_lab.generation.sampling import Draws, Sampling, draw_tokens, keep_likeliest

VOCABULARY = 12
NONE = jnp.zeros(VOCABULARY, bool)
draw = jax.jit(draw_tokens)
kept = jax.jit(jax.vmap(keep_likeliest))


def draws_of(*samplings: Sampling) -> Draws:
    draws = Draws.greedy(len(samplings))
    for row, sampling in enumerate(samplings):
        draws.put(row, sampling)
    return draws


def by_definition(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities after temperature and cuts, one rule after another."""
    scaled = logits.astype(np.float64) / sampling.temperature
    left = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    if sampling.top_k:
        left = left[: sampling.top_k]

    def share() -> np.ndarray:
        weights = np.exp(scaled[left] - scaled[left].max())
        return weights / weights.sum()

    together = np.cumsum(share())
    left = left[: 1 + int((together < sampling.top_p).sum())] if sampling.top_p < 1 else left
    shares = share()
    left = [token for token, own in zip(left, shares, strict=True) if own >= sampling.min_p * shares[0]]
    probabilities = np.zeros(len(scaled))
    probabilities[left] = share()
    return probabilities


@pytest.mark.slow
@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 12, 50]),
    top_p=st.sampled_from([1.0, 0.9, 0.35, 0.01]),
    min_p=st.sampled_from([0.0, 0.11, 0.97]),
)
def test_cuts_are_those_of_their_definitions(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=(1, VOCABULARY)).astype(np.float32) * 2
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    found = jax.nn.softmax(kept(logits / np.float32(temperature), draws_of(sampling)))[0]
    np.testing.assert_allclose(found, by_definition(logits[0], sampling), atol=1e-5)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6, top_k=5),
        Sampling(temperature=1.5, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.2),
    ],
    ids=["all", "top_k", "top_p", "min_p"],
)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    logits = np.random.default_rng(3).normal(size=VOCABULARY).astype(np.float32)
    count, expected = 20_000, by_definition(logits, sampling)
    rows = np.broadcast_to(logits, (count, VOCABULARY))
    draws = Draws(*(np.repeat(values, count) for values in draws_of(sampling)))
    tokens = np.asarray(draw(rows, np.arange(count), draws, NONE).token_B)
    seen = np.bincount(tokens, minlength=VOCABULARY)
    possible = expected > 0
    assert not seen[~possible].any()
    assert stats.chisquare(seen[possible], count * expected[possible]).pvalue > 1e-4


@pytest.mark.slow
def test_a_draw_depends_on_its_seed_and_place_alone() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, VOCABULARY)).astype(np.float32)
    own = [Sampling(temperature=1.0 + row % 2, seed=row, top_k=4 * (row % 3)) for row in range(6)]
    together = draw(logits, np.arange(6), draws_of(*own), NONE)
    for order in itertools.islice(itertools.permutations(range(6)), 0, 700, 97):
        places = np.array(order)
        moved = draw(logits[places], np.arange(6)[places], draws_of(*(own[row] for row in places)), NONE)
        np.testing.assert_array_equal(moved.token_B, together.token_B[places])
    flat, many = np.zeros((64, VOCABULARY), np.float32), 64
    by_seed = draw(flat, np.zeros(many, int), draws_of(*(Sampling(temperature=1, seed=s) for s in range(many))), NONE)
    by_place = draw(flat, np.arange(many), draws_of(*[Sampling(temperature=1)] * many), NONE)
    assert len(set(np.asarray(by_seed.token_B))) > 6
    assert len(set(np.asarray(by_place.token_B))) > 6


def test_at_temperature_zero_it_is_the_likeliest_of_those_that_stand_for_a_token() -> None:
    logits = np.random.default_rng(1).normal(size=(3, VOCABULARY)).astype(np.float32)
    logits[:, -2:] = 99.0
    never = np.arange(VOCABULARY) >= VOCABULARY - 2
    drawn = draw(logits, np.zeros(3, int), draws_of(*[Sampling(seed=5)] * 3), never)
    np.testing.assert_array_equal(drawn.token_B, logits[:, :-2].argmax(-1))
    np.testing.assert_array_equal(drawn.likeliest_BN[:, 0], drawn.token_B)
    expected = jax.nn.log_softmax(logits[:, :-2]).max(-1)
    np.testing.assert_allclose(drawn.logprob_B, expected, rtol=1e-5)
    np.testing.assert_allclose(drawn.likeliest_logprob_BN[:, 0], expected, rtol=1e-5)
