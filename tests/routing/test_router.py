"""The pieces that routers share, by their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.routing.example import SPACE
from moe_lab.routing.memory import fading_mean, surrounding_mean
from moe_lab.routing.router import available_candidates, masked_mean, normalised, route_candidates

fading = jax.jit(lambda *arguments: fading_mean(*arguments)[0])


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1), half_life=st.sampled_from((0.5, 4.0, 64.0)))
@settings(max_examples=20)
def test_evidence_is_the_fading_mean_of_the_document_so_far(seed: int, half_life: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, 13, 3)).astype(np.float32)
    segments = np.sort(rng.integers(1, 4, (2, 13)), axis=1).astype(np.int32)
    got = fading(values, segments, half_life)
    for row, place in np.ndindex(2, 13):
        own = [p for p in range(place + 1) if segments[row, p] == segments[row, place]]
        weight = [0.5 ** ((place - p) / half_life) for p in own]
        expected = np.average(values[row, own].astype(np.float64), axis=0, weights=weight)
        np.testing.assert_allclose(got[row, place], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_surroundings_are_the_document_so_far_and_the_document_to_come() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 7, 2)).astype(np.float32)
    segments = np.array([[1, 1, 1, 1, 2, 2, 0]], np.int32)
    got = surrounding_mean(values, segments, 2.0)[0]
    for place in range(7):
        sides = [
            [p for p in side if segments[0, p] == segments[0, place]] for side in (range(place + 1), range(place, 7))
        ]
        means = [
            np.average(values[0, own], axis=0, weights=[0.5 ** (abs(place - p) / 2) for p in own]) for own in sides
        ]
        np.testing.assert_allclose(got[place], np.mean(means, axis=0), rtol=1e-4, atol=1e-5)


def test_candidates_become_one_choice_of_weight_one() -> None:
    routing = route_candidates(SPACE, jnp.array([[0, 1, 3, 6]]))
    np.testing.assert_array_equal(routing.expert[..., 0], [[0, 0, 1, 2]])
    np.testing.assert_array_equal(routing.width[..., 0], [[0, 1, 2, 4]])
    np.testing.assert_array_equal(routing.weight, np.ones((1, 4, 1), np.float32))


@pytest.mark.parametrize(
    ("available", "candidates"),
    [
        ((True, True, True), [True] * 7),
        ((False, True, True), [True, False, True, True, True, True, True]),
        ((True, True, False), [True, True, True, True, False, False, False]),
        ((False, False, False), [True] + [False] * 6),
    ],
)
def test_the_trunk_is_always_available(available: tuple[bool, ...], candidates: list[bool]) -> None:
    np.testing.assert_array_equal(available_candidates(SPACE, jnp.array([available])), [candidates])


def test_means_leave_padding_out() -> None:
    values = jnp.array([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]])
    segments = jnp.array([[1, 2, 0], [3, 0, 0]])
    assert masked_mean(values, segments) == 3.0
    assert masked_mean(values, jnp.zeros_like(segments)) == 0.0


@pytest.mark.slow
def test_normalised_features_have_a_root_mean_square_of_one() -> None:
    x = 7 * np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    got = normalised(jnp.asarray(x, jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(np.sqrt((np.asarray(got) ** 2).mean(-1)), 1.0, rtol=1e-4)
    np.testing.assert_allclose(normalised(jnp.zeros((1, 1, 4))), 0.0)
