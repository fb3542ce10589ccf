"""The cascade keeps the contract, stops where the deferral rule says, and learns what going on is worth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab import Features, Router, Seen, find_lab
from moe_lab.testing import SPACE, check_router, draw_example, learn_example, make_example_router

pytestmark = pytest.mark.slow

lab = find_lab()
CascadeRouter = lab.load(lab.get("routers", "cascade"))
COST_EQ = np.concatenate([np.zeros((3, 1)), SPACE.relative_cost_C[SPACE.candidate_ER]], axis=1)
VALID_ER = SPACE.valid_ER


class Told(CascadeRouter):
    """Reads its break-even prices off the hidden state: one per (module, check), and the module's number last."""

    def scores(self, seen: Seen) -> jax.Array:
        return seen.networks_BSX[..., :9].reshape(*seen.networks_BSX.shape[:2], 3, 3)

    def read(self, state: None, features: Features) -> tuple[Seen, None]:
        seen, _ = super().read(state, features)
        return seen._replace(own_BSE=-99 * jnp.square(features.hidden_BSD[..., 9:10] - jnp.arange(3))), None


def told(score_NER: np.ndarray, module_N: np.ndarray, price: float) -> Features:
    hidden_BSD = jnp.asarray(np.concatenate([score_NER.reshape(-1, 9), module_N[:, None]], axis=1), jnp.float32)[None]
    ones_BS = jnp.ones(hidden_BSD.shape[:2], jnp.int32)
    return Features(hidden_BSD, ones_BS, ones_BS, jnp.ones((1, 3), bool), jnp.full(1, price, jnp.float32))


def break_even(loss_NEQ: np.ndarray) -> np.ndarray:
    """Closed form: the steepest way on from each rung, over all wider ones."""
    scores = np.full((len(loss_NEQ), 3, 3), -np.inf)
    for module, check in zip(*np.nonzero(VALID_ER), strict=True):
        wider = [rung + 1 for rung in range(check, 3) if VALID_ER[module, rung]]
        saved = loss_NEQ[:, module, check, None] - loss_NEQ[:, module, wider]
        scores[:, module, check] = (saved / (COST_EQ[module, wider] - COST_EQ[module, check])).max(-1)
    return scores


@pytest.fixture(scope="module")
def route():
    return jax.jit(make_example_router(Told).route)


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Losses of ladders of any shape, some of which lose more the wider they run; and the module of each token."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(500, 3, 4)), rng.integers(0, 3, 500)


def test_it_keeps_the_contract() -> None:
    check_router(CascadeRouter)


@pytest.mark.parametrize("price", [0.0, 0.3, 1.0, 4.0])
def test_told_the_break_even_prices_it_stops_at_the_least_bill(price: float, drawn, route) -> None:
    loss_NEQ, module_N = drawn
    bill_NEQ = loss_NEQ + price * COST_EQ
    bill_NEQ[:, :, 1:][:, ~VALID_ER] = np.inf
    best_N = bill_NEQ[np.arange(500), module_N].argmin(-1)
    expected_N = np.where(best_N > 0, SPACE.blocks_C[SPACE.candidate_ER[module_N, best_N - 1]], 0)
    routing = route(told(break_even(loss_NEQ), module_N, price))
    np.testing.assert_array_equal(routing.width[0, :, 0], expected_N)
    assert len(np.unique(expected_N)) > 2


def test_a_higher_price_widens_no_token(drawn, route) -> None:
    _, module_N = drawn
    scores = np.random.default_rng(1).normal(size=(500, 3, 3))
    before = np.full(500, 99)
    for price in (0.0, 0.2, 0.7, 2.0):
        routing = route(told(scores, module_N, price))
        assert (routing.width[0, :, 0] <= before).all()
        before = np.asarray(routing.width[0, :, 0])


def test_the_softened_chain_is_the_chain_when_it_is_cold(drawn, route) -> None:
    loss_NEQ, module_N = drawn
    shown = told(np.where(VALID_ER, break_even(loss_NEQ), 0.0), module_N, 0.5)
    soft, sharp = make_example_router(Told), make_example_router(Told, softness=1e-6)
    soft = soft.policy(soft.seen(shown), shown.price_B[0])
    np.testing.assert_allclose(soft.sum(-1), 1.0, rtol=1e-5)
    cold = sharp.policy(sharp.seen(shown), shown.price_B[0])[0]
    stops_N = np.asarray(cold)[np.arange(500), module_N].argmax(-1)
    width_N = np.where(stops_N > 0, SPACE.blocks_C[SPACE.candidate_ER[module_N, stops_N - 1]], 0)
    np.testing.assert_array_equal(width_N, route(shown).width[0, :, 0])


def test_what_is_at_stake_in_a_check_is_all_that_may_still_be_spent() -> None:
    """Closed form: going on is a sigmoid of the score's lead over the price times the cost up to the widest rung."""
    scores, price, softness = np.random.default_rng(2).normal(size=(50, 3, 3)), 0.4, 0.7
    shown = told(scores, np.zeros(50), price)
    router = make_example_router(Told, softness=softness)
    policy = router.policy(router.seen(shown), shown.price_B[0])[0]
    widest_E = np.array([COST_EQ[module, 1:][VALID_ER[module]].max() for module in range(3)])
    stake_NER = (scores - price) * (widest_E[:, None] - COST_EQ[:, :-1])
    goes_on_NER = VALID_ER / (1 + np.exp(-stake_NER / softness))
    reached_NEQ = np.concatenate([np.ones((50, 3, 1)), np.cumprod(goes_on_NER, -1)], -1)
    stops_NEQ = reached_NEQ * np.concatenate([1 - goes_on_NER, np.ones((50, 3, 1))], -1)
    np.testing.assert_allclose(policy, stops_NEQ, rtol=1e-4, atol=1e-6)


def test_its_cost_is_that_of_all_checks_of_all_modules() -> None:
    router = make_example_router(CascadeRouter, hidden=16, ngrams=0)
    assert router.multiply_adds == 2 * (16 * 16) + 16 * 3 + 16 * 9 + 3 * 3
    router = make_example_router(CascadeRouter, hidden=16, ngrams=4)
    assert router.multiply_adds == 16 * 16 + 16 * 9 + 3 * 3 + (4 + 1) * 3  # 4 scores of a module, and what fades


@pytest.fixture(scope="module")
def trained() -> Router:
    return learn_example(make_example_router(CascadeRouter, half_life=16, hidden=16, prices=(0.01, 20.0)))


def test_it_learns_which_tokens_to_go_on_for(trained: Router) -> None:
    unseen = draw_example(7, rows=32)
    counted = np.asarray(unseen.features.segment_ids_BS) > 0
    routing = jax.jit(trained.route)(unseen.features.for_all_rows(price=1.26))
    expert, width = np.asarray(routing.expert)[..., 0], np.asarray(routing.width)[..., 0]
    marked, easy = counted & unseen.marked_BS, counted & ~unseen.marked_BS
    assert (expert == unseen.module_BS)[marked].mean() > 0.9
    # The price lies between what all of the dearest module is worth on a marked token, 2, and what the cheapest one is
    # worth on another token, 0.2 nats at a quarter of the cost.
    assert (width == SPACE.blocks_C[SPACE.widest_E][unseen.module_BS])[marked].mean() > 0.9
    assert (width == 0)[easy].mean() > 0.9
