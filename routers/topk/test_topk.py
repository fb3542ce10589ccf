"""The top-k router keeps the contract, and its losses are those of the papers that it cites."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab.lab import find_lab
from moe_lab.routing.conformance import check_router
from moe_lab.routing.example import D_MODEL, SPACE, make_example_router
from moe_lab.routing.router import Features, Router

pytestmark = pytest.mark.slow

lab = find_lab()
TopKRouter = lab.load(lab.get("routers", "topk"))
WIDEST = SPACE.blocks_C[SPACE.widest_E]

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
"""Gates of three tokens, by hand."""


def by_hand(**settings: Any) -> tuple[Router, Features]:
    """A router, and four tokens whose gates are `PROBABILITIES` with logits shifted by 1.5; the fourth is padding."""
    router = make_example_router(TopKRouter, **settings)
    kernel = np.zeros((2 * D_MODEL, 3), np.float32)
    kernel[:3] = np.log(PROBABILITIES)
    router.gates.kernel[...], router.gates.bias[...] = jnp.asarray(kernel), jnp.full(3, 1.5)
    hidden = np.eye(4, D_MODEL, dtype=np.float32)[None]
    segments = jnp.array([[1, 1, 2, 0]])
    return router, Features(jnp.asarray(hidden), segments, jnp.ones(3, bool), jnp.float32(0))


@pytest.mark.parametrize("settings", [{}, {"top_k": 9, "gate": "sigmoid", "balance": "count"}])
def test_it_keeps_the_contract(settings: dict) -> None:
    check_router(TopKRouter, **settings)


def test_the_best_gates_run_at_full_width_and_share_the_weight() -> None:
    router, features = by_hand(top_k=2)
    routing = router.route(features)
    np.testing.assert_array_equal(routing.expert[0, :3], [[0, 1], [0, 1], [1, 0]])
    np.testing.assert_array_equal(routing.width, WIDEST[np.asarray(routing.expert)])
    np.testing.assert_allclose(routing.weight[0, :3], [[7 / 9, 2 / 9], [6 / 9, 3 / 9], [8 / 9, 1 / 9]], rtol=1e-5)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_the_weight_of_a_module_that_is_opted_out_goes_to_the_others(gate: str) -> None:
    router, features = by_hand(top_k=2, gate=gate)
    routing = router.route(features._replace(available_E=jnp.array([False, True, False])))
    used = np.asarray(routing.width) > 0
    assert (used.sum(-1) == 1).all()
    np.testing.assert_array_equal(np.asarray(routing.expert)[used], 1)
    np.testing.assert_allclose(np.asarray(routing.weight), used, atol=1e-6)


def test_the_balance_loss_is_the_switch_transformer_s() -> None:
    router, features = by_hand(top_k=1, balance="count", load_balancing_loss=0.5, router_z_loss=0.25)
    total, metrics = router.auxiliary_loss(features)
    # Eq. 4: E sum_e f_e P_e with f = (2/3, 1/3, 0) and P = (1.4, 1.3, 0.3) / 3; the padding does not count.
    balance = 3 * (2 / 3 * 1.4 / 3 + 1 / 3 * 1.3 / 3)
    np.testing.assert_allclose(metrics["load_balancing_loss"], balance, rtol=1e-5)
    np.testing.assert_allclose(metrics["router_z_loss"], 1.5**2, rtol=1e-5)  # log sum of exp(1.5) p
    np.testing.assert_allclose(total, 0.5 * balance + 0.25 * 1.5**2, rtol=1e-5)


@pytest.mark.parametrize("balance", ["count", "size"])
def test_even_gates_over_even_loads_cost_one(balance: str) -> None:
    router, features = by_hand(top_k=3, balance=balance)
    router.gates.kernel[...] = jnp.zeros((2 * D_MODEL, 3))
    np.testing.assert_allclose(router.auxiliary_loss(features)[1]["load_balancing_loss"], 1.0, rtol=1e-5)


def test_the_size_form_charges_a_module_for_its_width() -> None:
    # Tokens 1 and 2 go to module 0 (1 block), token 3 to module 1 (2 blocks); widths are (1, 2, 4), 7/3 on average.
    router, features = by_hand(top_k=1, balance="size")
    expected = 3 * (2 / 3 * (1 / (7 / 3)) * 1.4 / 3 + 1 / 3 * (2 / (7 / 3)) * 1.3 / 3)
    np.testing.assert_allclose(router.auxiliary_loss(features)[1]["load_balancing_loss"], expected, rtol=1e-5)
