"""The oracle keeps the contract, and finds what a search by hand finds."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab import find_lab
from moe_lab.testing import SPACE, check_router, draw_example, make_example_router

lab = find_lab()
OracleRouter = lab.load(lab.get("routers", "oracle"))


def test_it_keeps_the_contract() -> None:
    check_router(OracleRouter)


@pytest.mark.slow
@pytest.mark.parametrize("price", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("available", [(True, True, True), (True, False, True), (False, False, False)])
def test_no_candidate_has_a_smaller_bill(price: float, available: tuple[bool, ...]) -> None:
    rng = np.random.default_rng(0)
    loss = rng.gamma(2.0, size=(2, 5, len(SPACE))).astype(np.float32)
    features = draw_example(0, rows=2, length=5).features.for_all_rows(price=price, available_E=available)
    features = features._replace(outcomes_BSC=jnp.asarray(loss))
    routing = make_example_router(OracleRouter).route(features)
    for row, place in itertools.product(range(2), range(5)):
        bills = {(0, 0): float(loss[row, place, 0])}
        for candidate, (module, rung) in enumerate(SPACE.pairs, start=1):
            if available[module]:
                cost = SPACE.costs[module][rung] / 1600  # the dearest candidate's
                bills[module, SPACE.blocks[module][rung]] = float(loss[row, place, candidate]) + price * cost
        best = min(bills, key=bills.__getitem__)
        assert (int(routing.expert[row, place, 0]), int(routing.width[row, place, 0])) == best


@pytest.mark.slow
def test_what_gains_nothing_is_not_bought() -> None:
    features = draw_example(0).features
    even = features.for_all_rows(price=0)._replace(outcomes_BSC=jnp.ones((4, 24, len(SPACE))))
    assert not np.asarray(make_example_router(OracleRouter).route(even).width).any()
