"""The top-k router keeps the contract, and its losses are those of the papers that it cites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab import Features, LabError, Objective, Router, TrainSpec, find_lab, fit, open_run
from moe_lab.testing import (
    D_MODEL,
    SPACE,
    check_router,
    draw_example,
    make_example_router,
    state_from_tensors,
    state_tensors,
)

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
    available = jnp.ones((1, 3), bool)
    return router, Features(jnp.asarray(hidden), jnp.zeros((1, 4), int), segments, available, jnp.zeros(1))


@pytest.mark.parametrize("settings", [{"bias_speed": 0.5}, {"top_k": 9, "gate": "sigmoid", "balance": "count"}])
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
    routing = router.route(features.for_all_rows(available_E=[False, True, False]))
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


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_size_form_is_the_p_penalty(top_k: int) -> None:
    # N sum_e M_e P_e, M_e = (1/T) sum_t 1[e in E_t] h_e; here h is a multiple of the mean width, and k divides.
    features = draw_example(4).features
    router = make_example_router(TopKRouter, top_k=top_k)
    counted = np.asarray(features.segment_ids_BS) > 0
    expert_TK, logits_TE, balance = jax.jit(
        lambda shown: (
            router.route(shown).expert[counted],
            router._logits(None, shown)[0][counted],
            router.auxiliary_loss(shown)[1]["load_balancing_loss"],
        )
    )(features)
    probability_TE = np.exp(logits_TE) / np.exp(logits_TE).sum(-1, keepdims=True)
    size_E = WIDEST / WIDEST.mean()
    size_load_E = [(np.asarray(expert_TK) == e).any(-1).mean() * size_E[e] for e in range(3)]
    penalty = 3 * (np.array(size_load_E) * probability_TE.mean(0)).sum() / top_k
    np.testing.assert_allclose(balance, penalty, rtol=1e-5)


def test_the_cost_is_what_the_gates_expect_to_spend() -> None:
    router, features = by_hand(top_k=1, price=0.5, load_balancing_loss=0.0, router_z_loss=0.0)
    # Relative costs of the full widths are (1, 2, 4) / 4; the padding does not count.
    expected = (PROBABILITIES @ [0.25, 0.5, 1.0]).mean()
    total, metrics = router.auxiliary_loss(features)
    np.testing.assert_allclose(metrics["expected_cost"], expected, rtol=1e-5)
    np.testing.assert_allclose(total, 0.5 * expected, rtol=1e-5)


class Worth(Objective):
    """Stands for the language model: each choice saves what its module is worth to the token, times its weight."""

    def __init__(self, router: Router, worth_E: tuple[float, ...], interrupted_at: int = -1):
        self.graph, self.start = nnx.split(router)
        self.worth_E, self.interrupted_at, self.units_per_step = jnp.array(worth_E), interrupted_at, 1

    def init(self, key: jax.Array) -> nnx.State:
        return self.start

    def batch(self, step: int) -> Features:
        if step == self.interrupted_at:
            raise KeyboardInterrupt
        return draw_example(step % 8).features._replace(outcomes_BSC=None)

    def loss(self, params: Any, frozen: Any, batch: Features, key: jax.Array) -> tuple[jax.Array, dict]:
        router = nnx.merge(self.graph, params)
        routing = router.route(batch)
        auxiliary, metrics = router.auxiliary_loss(batch)
        counted = (batch.segment_ids_BS > 0)[..., None]
        return auxiliary - (counted * routing.weight * self.worth_E[routing.expert]).mean(), metrics


SPEC = TrainSpec(steps=160, batch_size=4, seq_len=24, learning_rate=0.01, weight_decay=0.0, schedule="constant")


def trained(folder: Path, objective: Objective, spec: TrainSpec = SPEC) -> Any:
    with open_run(folder, "router", "lab/toy", {}, {}) as run:
        return fit(objective, spec, run)


@pytest.mark.parametrize("target", ["even", (6.0, 3.0, 1.0)])
def test_the_bias_moves_the_load_to_its_targets_and_nothing_else(tmp_path: Path, target) -> None:
    quiet = {"load_balancing_loss": 0.0, "router_z_loss": 0.0}
    router = make_example_router(TopKRouter, top_k=1, bias_speed=1.0, target_load=target, **quiet)
    router.gates.bias[...] = jnp.array([0.0, 0.0, 1.0])  # without help most tokens would go to the widest
    features = draw_example(3).features
    before = jax.jit(router.auxiliary_loss)(features)[1]["load_error"]
    result = trained(tmp_path, Worth(router, (0.0, 0.0, 0.0)))
    assert before > 0.25
    assert result.metrics["load_error"] < 0.08
    after = nnx.merge(nnx.graphdef(router), result.params)
    np.testing.assert_array_equal(after.gates.kernel[...], router.gates.kernel[...])
    assert jax.jit(after.auxiliary_loss)(features)[0] == 0.0  # a gradient, and no loss
    expert_T = np.asarray(jax.jit(after.route)(features).expert)[features.segment_ids_BS > 0]
    load_E = [(expert_T == e).mean() for e in range(3)]
    wanted = np.array([6, 3, 1]) if isinstance(target, tuple) else np.ones(3)
    np.testing.assert_allclose(load_E, wanted / wanted.sum(), atol=0.15)


def test_a_weight_is_that_of_the_gates_whatever_the_bias_says() -> None:
    router, features = by_hand(top_k=2, bias_speed=1.0)
    router.selection_bias[...] = jnp.array([-9.0, 0.0, 9.0])
    routing = jax.jit(router.route)(features)
    np.testing.assert_array_equal(routing.expert[0, :3], [[2, 1]] * 3)
    np.testing.assert_allclose(routing.weight[0, :3], [[1 / 3, 2 / 3], [1 / 4, 3 / 4], [1 / 9, 8 / 9]], rtol=1e-5)


def test_the_bias_is_resumed_and_published_like_any_parameter(tmp_path: Path) -> None:
    router = make_example_router(TopKRouter, top_k=1, bias_speed=1.0)
    spec = SPEC.model_copy(update={"steps": 12, "checkpoint_every": 5})
    whole = trained(tmp_path / "whole", Worth(router, (0.1, 0.2, 0.3)), spec)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", Worth(router, (0.1, 0.2, 0.3), interrupted_at=8), spec)
    resumed = trained(tmp_path / "cut", Worth(router, (0.1, 0.2, 0.3)), spec)
    assert resumed.resumed_from == 5
    published = state_tensors(resumed.params)
    assert np.any(published["selection_bias"] != 0)
    for name, tensor in state_tensors(whole.params).items():
        np.testing.assert_array_equal(published[name], tensor)
    again = nnx.merge(nnx.graphdef(router), state_from_tensors(nnx.state(router), published, "toy"))
    np.testing.assert_array_equal(again.selection_bias[...], published["selection_bias"])


def test_a_price_in_training_makes_it_spend_less(tmp_path: Path) -> None:
    spent = []
    for price in (0.0, 3.0):
        router = make_example_router(TopKRouter, top_k=3, price=price, load_balancing_loss=0.0)
        spec = SPEC.model_copy(update={"learning_rate": 0.03})
        result = trained(tmp_path / str(price), Worth(router, (0.1, 0.3, 0.5)), spec)
        spent.append(result.metrics["expected_cost"])
    assert spent[0] > 0.8  # the dearest module is worth most
    assert spent[1] < 0.3  # and not worth this price; the cheapest costs a quarter


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_load": (1.0, 2.0)}, "has 2 numbers, but there are 3 modules; give one for each of north/one, east"),
        ({"target_load": "width"}, r"asks for 0.57 of all choices for south/three, but with 2 .* gets 0.50 at most"),
    ],
)
def test_a_target_that_cannot_be_reached_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(LabError, match=message):
        make_example_router(TopKRouter, bias_speed=1.0, **settings)


def test_a_target_without_a_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="target_load has no effect while bias_speed is 0"):
        TopKRouter.Config(target_load="width")
