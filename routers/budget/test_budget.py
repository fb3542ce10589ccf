"""The budget is kept exactly, and nothing within it gains more than what was bought and the next upgrade."""

from __future__ import annotations

import inspect
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab import Router, find_lab
from moe_lab.testing import SPACE, check_router, draw_example, learn_example, make_example_router

pytestmark = pytest.mark.slow

lab = find_lab()
BudgetRouter = lab.load(lab.get("routers", "budget"))
GainRouter = lab.load(lab.get("routers", "gain"))
upgrades = sys.modules[inspect.getmodule(BudgetRouter).__name__.rpartition(".")[0] + ".upgrades"]
hull_slopes, best_upgrades = jax.jit(upgrades.hull_slopes), jax.jit(upgrades.best_upgrades)


def draw_ladders(seed: int, tokens: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Gains of any shape, ladders of one to three rungs."""
    rng = np.random.default_rng(seed)
    gain = np.cumsum(rng.normal(0.4, 1.0, (tokens, 4)), axis=1)
    cost = np.cumsum(rng.integers(1, 4, (tokens, 4)), axis=1)
    gain, cost = gain - gain[:, :1], cost - cost[:, :1]
    for token, last in enumerate(rng.integers(1, 4, tokens)):
        gain[token, last:], cost[token, last:] = gain[token, last], cost[token, last]
    return gain.astype(np.float32), cost.astype(np.int32)


def steepest_edges(gain_Q: np.ndarray, cost_Q: np.ndarray) -> list[tuple[int, int]]:
    """The hull's vertices by gift wrapping: from each the steepest way on."""
    edges, here = [], 0
    while len(further := np.flatnonzero(cost_Q > cost_Q[here])):
        slope = (gain_Q[further] - gain_Q[here]) / (cost_Q[further] - cost_Q[here])
        edges.append((here, int(further[slope.argmax()])))
        here = edges[-1][1]
    return edges


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_hull_slopes_are_those_of_gift_wrapping(seed: int) -> None:
    gain_NQ, cost_NQ = draw_ladders(seed)
    slope_NR = np.asarray(hull_slopes(gain_NQ, cost_NQ))
    for gain_Q, cost_Q, slope_R in zip(gain_NQ, cost_NQ, slope_NR, strict=True):
        expected = np.full(3, -np.inf)
        for start, end in steepest_edges(gain_Q, cost_Q):
            expected[start:end] = (gain_Q[end] - gain_Q[start]) / (cost_Q[end] - cost_Q[start])
        np.testing.assert_allclose(slope_R, expected, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 10_000), total=st.integers(0, 40), price=st.sampled_from([0.0, 0.2, 0.6]))
@settings(max_examples=60, deadline=None)
def test_no_choice_within_the_budget_gains_more_than_this_and_one_upgrade(seed: int, total: int, price: float) -> None:
    gain_NQ, cost_NQ = draw_ladders(seed)
    rung_N = np.asarray(best_upgrades(gain_NQ, cost_NQ, price, total))
    tokens = np.arange(len(rung_N))
    spent = cost_NQ[tokens, rung_N].sum()
    assert spent <= total
    for gain_Q, cost_Q, rung in zip(gain_NQ, cost_NQ, rung_N, strict=True):
        assert rung in {0, *(end for _, end in steepest_edges(gain_Q, cost_Q))}  # never in the middle of an edge
    worth_NQ = gain_NQ - price * cost_NQ  # what is bought must gain more than its price
    own = worth_NQ[tokens, rung_N].sum()
    choices = np.array(list(itertools.product(range(4), repeat=len(tokens))))
    fits = cost_NQ[tokens, choices].sum(-1) <= total
    best = worth_NQ[tokens, choices].sum(-1)[fits].max()
    left_out = [
        (worth[end] - worth[start], cost[end] - cost[start])
        for worth, cost, rung in zip(worth_NQ, cost_NQ, rung_N, strict=True)
        for start, end in steepest_edges(worth, cost)
        if start >= rung and worth[end] > worth[start]
    ]
    # The first that did not fit has the most gain per cost of those left out.
    next_gain, next_cost = max(left_out, key=lambda item: item[0] / item[1], default=(0.0, 0))
    assert best <= own + max(0.0, next_gain) + 1e-4
    assert not left_out or spent + next_cost > total  # it really did not fit


def test_it_keeps_the_contract() -> None:
    check_router(BudgetRouter)


@pytest.mark.parametrize("budget", [0.01, 0.3, 0.77, 1.0])
def test_a_batch_never_costs_more_than_its_budget_and_wastes_less_than_one_upgrade(budget: float) -> None:
    router, features = make_example_router(BudgetRouter, budget=budget), draw_example(5).features
    routing = jax.jit(router.route)(features.for_all_rows(price=0))
    counted = np.asarray(features.segment_ids_BS) > 0
    run_BS = np.asarray(routing.width)[..., 0]
    assert not run_BS[~counted].any()
    allowed = budget * counted.sum() * 4  # the dearest candidate is 4 blocks
    assert run_BS.sum() <= allowed
    # Fresh heads find every upgrade worth something, so money is left only where all is bought.
    widest_BS = SPACE.blocks_C[SPACE.widest_E][np.asarray(routing.expert)[..., 0]]
    assert run_BS.sum() > allowed - 4 - 1 or (run_BS == widest_BS)[counted].all()


def test_with_enough_money_it_buys_what_the_gain_router_buys() -> None:
    features = draw_example(3).features
    routings = []
    for cls, own in ((BudgetRouter, {"budget": 1.0}), (GainRouter, {})):
        router = make_example_router(cls, **own)
        rng = np.random.default_rng(0)
        for table, scale in (
            (router.home_evidence.ngram_scores, 1000),
            (router.rung_loss.ngram_excess, 0.1),
        ):  # sure of the module
            table[...] = jnp.asarray(scale * rng.normal(size=table.shape), jnp.float32)
        router.level_EM[...] = 1000 * router.level_EM[...]  # another module is never the cheaper one
        route = jax.jit(router.route)
        routings.append([route(features.for_all_rows(price=price)) for price in (0.0, 0.3, 1.0)])
    counted = np.asarray(features.segment_ids_BS) > 0
    widths = set()
    for ours, theirs in zip(*routings, strict=True):
        runs = counted & (np.asarray(ours.width)[..., 0] > 0)
        np.testing.assert_array_equal(ours.expert[..., 0][runs], theirs.expert[..., 0][runs])
        np.testing.assert_array_equal(ours.width[..., 0][counted], theirs.width[..., 0][counted])
        widths |= set(np.asarray(ours.width)[counted].ravel().tolist())
    assert len(widths) > 2


@pytest.fixture(scope="module")
def trained() -> Router:
    settings = {"half_life": 16, "shrinkage": 1, "budget": 0.1}
    return learn_example(make_example_router(BudgetRouter, **settings))


def test_the_budget_goes_to_the_tokens_that_gain_most(trained: Router) -> None:
    unseen = draw_example(7, rows=32)
    counted = np.asarray(unseen.features.segment_ids_BS) > 0
    routing = jax.jit(trained.route)(unseen.features.for_all_rows(price=0))
    run_BS = np.asarray(routing.width)[..., 0]
    spent = run_BS[counted].sum()
    assert 0.095 < spent / (4 * counted.sum()) <= 0.1
    # A third of the tokens is marked and gains ten times as much; they could use about twice this budget.
    assert run_BS[counted & unseen.marked_BS].sum() > 0.95 * spent
