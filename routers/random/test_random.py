"""The random router keeps the contract, and draws evenly among what is available."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab import Routing, find_lab
from moe_lab.testing import SPACE, check_router, draw_example, make_example_router

lab = find_lab()
RandomRouter = lab.load(lab.get("routers", "random"))


def shares(routing: Routing) -> np.ndarray:
    """How often each candidate of the example space was drawn."""
    expert, width = (np.asarray(field)[..., None, 0] for field in (routing.expert, routing.width))
    drawn = (width == SPACE.blocks_C) & ((expert == SPACE.module_C) | (SPACE.blocks_C == 0))
    assert (drawn.sum(-1) == 1).all(), "every token runs exactly one candidate"
    return drawn.mean(axis=(0, 1))


@pytest.mark.slow
def test_it_keeps_the_contract() -> None:
    check_router(RandomRouter)


@pytest.mark.slow
def test_it_draws_evenly_among_the_trunk_and_what_is_available() -> None:
    router, features = make_example_router(RandomRouter), draw_example(0, rows=64, length=64).features
    tokens_BS = np.random.default_rng(0).integers(50_000, size=(64, 64))  # so that no draw comes twice
    features = features._replace(tokens_BS=jnp.asarray(tokens_BS, jnp.int32))
    np.testing.assert_allclose(shares(router.route(features)), 1 / 7, atol=0.03)
    without = router.route(features.for_all_rows(available_E=[True, True, False]))
    np.testing.assert_allclose(shares(without), [1 / 4] * 4 + [0] * 3, atol=0.03)


@pytest.mark.slow
def test_another_seed_draws_otherwise() -> None:
    features = draw_example(0).features
    first, second = (make_example_router(RandomRouter, seed=seed).route(features) for seed in (0, 1))
    assert (np.asarray(first.width) != np.asarray(second.width)).mean() > 0.3
