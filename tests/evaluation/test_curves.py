"""Reference routers against brute force over small outcome tables."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.evaluation.comparison import Comparison
from moe_lab.evaluation.curves import TokenOutcomes, bits_at_cost, choice_point, price_curve, zero_curve
from moe_lab.evaluation.passes import MadePasses
from moe_lab.metrics.choices import best_fixed, fixed, group_table, oracle
from moe_lab.metrics.hull import zero_router

COST = st.integers(0, 8).map(float)
LOSS = st.integers(0, 40).map(lambda eighths: eighths / 8)
PRICES = st.sampled_from([0.0, 0.125, 0.5, 1.0, 8.0])


@st.composite
def outcome_tables(draw):
    tokens, candidates = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    loss = draw(st.lists(st.lists(LOSS, min_size=candidates, max_size=candidates), min_size=tokens, max_size=tokens))
    group = draw(st.lists(st.integers(0, 2), min_size=tokens, max_size=tokens))
    return TokenOutcomes(
        loss_TC=np.array(loss),
        cost_C=np.array(draw(st.lists(COST, min_size=candidates, max_size=candidates))),
        unit_T=np.arange(tokens) // 3,
        group_T=np.array(group),
        bytes_T=np.ones(tokens, int),
    )


def price_of(outcomes: TokenOutcomes, choice: np.ndarray, price: float) -> float:
    picked = np.arange(len(choice)), choice
    return float((outcomes.loss_TC[picked] + price * outcomes.cost_C[choice]).sum())


def cheapest_by_mixing_two(points: np.ndarray, cost: float) -> float:
    """The least loss of any two candidates mixed at any ratio without spending more than `cost`."""
    found = [loss for spent, loss in points if spent <= cost]
    for (left, left_loss), (right, right_loss) in itertools.permutations(points, 2):
        if left <= cost < right:
            found.append(left_loss + (right_loss - left_loss) * (cost - left) / (right - left))
    return min(found, default=np.inf)


@pytest.mark.slow
@given(st.lists(st.tuples(COST, LOSS), min_size=1, max_size=9), st.floats(0, 10))
@settings(max_examples=300, deadline=None)
def test_zero_router_is_the_best_mixture_of_two(points, cost):
    hull = zero_router(points)
    best = cheapest_by_mixing_two(np.array(points), cost)
    assert hull.at(cost) == pytest.approx(best)
    if np.isfinite(best):
        weights = hull.weights(cost)
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1)
        spent, reached = weights @ np.array(points)
        assert reached == pytest.approx(best)
        assert spent <= cost + 1e-9


@given(st.lists(st.tuples(COST, LOSS), min_size=1, max_size=9))
@settings(deadline=None)
def test_zero_router_falls_ever_more_slowly_to_the_cheapest_of_the_best(points):
    hull = zero_router(points)
    slopes = np.diff(hull.losses_V) / np.diff(hull.costs_V)
    assert (slopes < 0).all()
    assert (np.diff(slopes) > -1e-12).all()
    assert hull.losses_V[-1] == min(loss for _, loss in points)
    assert hull.costs_V[0] == min(cost for cost, _ in points)
    assert hull.costs_V[-1] == min(cost for cost, loss in points if loss == hull.losses_V[-1])
    assert [tuple(points[c]) for c in hull.candidates_V] == list(zip(hull.costs_V, hull.losses_V, strict=True))


def test_zero_router_skips_a_candidate_above_the_line_of_its_neighbours():
    hull = zero_router([(0, 4.0), (1, 3.9), (2, 2.0), (5, 2.5), (6, 1.0)])
    assert hull.candidates_V.tolist() == [0, 2, 4]
    assert hull.at([0, 1, 4, 6, 99]).tolist() == [4.0, 3.0, 1.5, 1.0, 1.0]
    assert hull.weights(3).tolist() == [0, 0, 0.75, 0, 0.25]
    assert zero_router([(2, 1.0)]).at(1.9) == np.inf


@pytest.mark.slow
@given(outcome_tables(), PRICES)
@settings(max_examples=200, deadline=None)
def test_each_reference_is_the_brute_force_best_and_they_are_in_order(outcomes, price):
    tokens, candidates = outcomes.loss_TC.shape
    by_token = price_of(outcomes, oracle(outcomes.loss_TC, outcomes.cost_C, price), price)
    table = group_table(outcomes.loss_TC, outcomes.cost_C, outcomes.group_T, price)
    by_group = price_of(outcomes, table[outcomes.group_T], price)
    one = price_of(outcomes, fixed(best_fixed(outcomes.loss_TC, outcomes.cost_C, price), tokens), price)
    assert by_token <= by_group + 1e-9 <= one + 2e-9
    total = outcomes.loss_TC + price * outcomes.cost_C
    assert by_token == pytest.approx(total.min(axis=1).sum())
    assert one == pytest.approx(total.sum(axis=0).min())
    tables = itertools.product(range(candidates), repeat=len(table))
    assert by_group == pytest.approx(min(price_of(outcomes, np.array(t)[outcomes.group_T], price) for t in tables))


@pytest.mark.slow
@given(outcome_tables(), PRICES, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_candidates_and_tokens_does_not_matter(outcomes, price, random):
    tokens, candidates = outcomes.loss_TC.shape
    columns, rows = list(range(candidates)), list(range(tokens))
    random.shuffle(columns)
    random.shuffle(rows)
    shuffled = TokenOutcomes(
        loss_TC=outcomes.loss_TC[rows][:, columns],
        cost_C=outcomes.cost_C[columns],
        unit_T=outcomes.unit_T[rows],
        group_T=outcomes.group_T[rows],
        bytes_T=outcomes.bytes_T[rows],
    )
    chosen = oracle(outcomes.loss_TC, outcomes.cost_C, price)[rows]
    again = oracle(shuffled.loss_TC, shuffled.cost_C, price)
    assert (outcomes.cost_C[chosen] == shuffled.cost_C[again]).all()
    for cost in (2.0, 8.0):
        hull, other = zero_router(outcomes.fixed_points()), zero_router(shuffled.fixed_points())
        np.testing.assert_allclose(hull.at(cost), other.at(cost))
    table = group_table(outcomes.loss_TC, outcomes.cost_C, outcomes.group_T, price)[outcomes.group_T]
    other = group_table(shuffled.loss_TC, shuffled.cost_C, shuffled.group_T, price)[shuffled.group_T]
    assert price_of(outcomes, table, price) == pytest.approx(price_of(shuffled, other, price))
    np.testing.assert_allclose(outcomes.bits_per_unit(chosen[np.argsort(rows)]), shuffled.bits_per_unit(again))


def test_ties_go_to_the_cheaper_candidate():
    cost, loss = np.array([3.0, 1.0, 1.0, 2.0]), np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 5.0, 5.0, 1.0]])
    assert oracle(loss, cost, 0.0).tolist() == [1, 3]
    assert best_fixed(np.array([[2.0, 4.0]]), np.array([2.0, 0.0]), 1.0) == 1
    assert group_table(loss, cost, [0, 1], 0.0).tolist() == [1, 3]


def test_group_table_is_decided_on_the_rows_given_and_fills_unseen_groups():
    loss = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [5.0, 1.0]])
    table = group_table(loss, np.array([1.0, 1.0]), [0, 0, 0, 1], 0.0, num_groups=3)
    assert table.tolist() == [0, 1, best_fixed(loss, np.array([1.0, 1.0]), 0.0)]
    assert table[np.array([2, 1, 0])].tolist() == [1, 1, 0]


@pytest.fixture
def two_domains() -> TokenOutcomes:
    """Two domains of 40 rows with 5 tokens; candidate 1 is good in the first, 2 in the second, 0 is cheap."""
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 200)
    loss = rng.gamma(4, 1, (400, 1)) + np.stack([np.ones(400), group * 1.5, (1 - group) * 1.5], axis=1)
    return TokenOutcomes(
        loss_TC=loss,
        cost_C=np.array([0.0, 10.0, 10.0]),
        unit_T=np.arange(400) // 5,
        group_T=group,
        bytes_T=rng.integers(1, 6, 400),
    )


def test_a_choice_point_is_the_plain_sum_over_tokens(two_domains):
    choice = np.where(np.arange(400) % 2 == 0, 0, 1 + two_domains.group_T)
    point = choice_point(two_domains, choice, price=0.25, resamples=50)
    total = two_domains.loss_TC[np.arange(400), choice].sum()
    assert point.bits_per_byte.mean == pytest.approx(total / two_domains.bytes_T.sum())
    assert (point.price, point.cost, point.difference_to_zero) == (0.25, 5.0, None)
    np.testing.assert_array_equal(two_domains.strata_U, np.repeat([0, 1], 40))


def test_difference_to_zero_is_measured_at_the_same_cost_and_sees_the_domains(two_domains):
    zero = zero_router(two_domains.fixed_points())
    curve = price_curve(
        two_domains,
        [10.0, 0.0, 0.05],
        lambda price: group_table(two_domains.loss_TC, two_domains.cost_C, two_domains.group_T, price)[
            two_domains.group_T
        ],
        zero=zero,
        resamples=200,
    )
    assert [point.cost for point in curve] == [0.0, 10.0, 10.0]
    differences = [point.difference_to_zero for point in curve if point.difference_to_zero is not None]
    for point, difference in zip(curve, differences, strict=True):
        expected = point.bits_per_byte.mean - float(zero.at(point.cost))
        assert difference.mean == pytest.approx(expected, abs=1e-12)
    assert differences[0].high == pytest.approx(0)
    assert differences[-1].high < 0


def test_the_zero_curve_has_no_difference_to_itself(two_domains):
    zero = zero_router(two_domains.fixed_points())
    points = zero_curve(two_domains, zero, resamples=20)
    assert [point.cost for point in points] == zero.costs_V.tolist()
    assert [point.bits_per_byte.mean for point in points] == pytest.approx(zero.losses_V.tolist())
    halfway = two_domains.bits_UC @ zero.weights(5.0)
    assert halfway.sum() / two_domains.bytes_U.sum() == pytest.approx(float(zero.at(5.0)))


def test_a_router_at_a_cost_is_a_mixture_of_its_two_nearest_passes():
    passes = [(10.0, np.array([8.0, 0.0])), (2.0, np.array([0.0, 4.0])), (6.0, np.array([4.0, 4.0]))]
    assert bits_at_cost(passes, 1.9) is None
    assert bits_at_cost(passes, 2.0).tolist() == [0.0, 4.0]
    assert bits_at_cost(passes, 3.0).tolist() == [1.0, 4.0]
    assert bits_at_cost(passes, 9.0).tolist() == [7.0, 1.0]
    assert bits_at_cost(passes, 99.0).tolist() == [8.0, 0.0]
    assert bits_at_cost([], 1.0) is None


def test_a_choice_beside_a_router_has_the_paired_difference_at_its_own_cost():
    rng = np.random.default_rng(0)
    units, tokens = np.repeat(np.arange(50), 4), 200
    outcomes = TokenOutcomes(
        loss_TC=rng.gamma(3, size=(tokens, 2)),
        cost_C=np.array([0.0, 10.0]),
        unit_T=units,
        group_T=np.zeros(tokens, int),
        bytes_T=np.ones(tokens, int),
    )
    choice = (np.arange(tokens) % 2).astype(np.intp)
    passes = [(4.0, outcomes.bits_per_unit(choice) - 1.0), (8.0, outcomes.bits_per_unit(choice) - 5.0)]
    found = choice_point(outcomes, choice, routed=passes).routed_difference
    # A quarter of the way from 4 to 8: two bits fewer in each unit of four bytes, without spread.
    assert found is not None
    assert (found.low, found.mean, found.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert choice_point(outcomes, choice).routed_difference is None


def test_what_baselines_mix_is_chosen_on_the_decision_rows_alone(two_domains):
    """Turned around on the test rows, the candidates that a hull and a table would pick are others."""
    turned = dataclasses.replace(two_domains, loss_TC=two_domains.loss_TC[:, ::-1])
    shared: dict[str, Any] = {
        "passes": MadePasses(),
        "label": "",
        "prices": (0.0,),
        "decision": two_domains,
        "names": (),
        "num_domains": 2,
        "dearest_cost": float(two_domains.cost_C.max()),
        "draws": {"resamples": 10, "seed": 0},
    }
    made, same = (Comparison(outcomes=outcomes, **shared) for outcomes in (turned, two_domains))
    chosen = zero_router(two_domains.fixed_points())
    for field in ("costs_V", "losses_V", "candidates_V"):
        np.testing.assert_array_equal(getattr(made.zero, field), getattr(chosen, field))
    assert chosen.candidates_V.tolist() != zero_router(turned.fixed_points()).candidates_V.tolist()
    for price in (0.0, 0.1, 10.0):
        np.testing.assert_array_equal(made._table_choice(price), same._table_choice(price))
    assert set(made._table_choice(0.0)) == {1, 2}
    assert made._table_choice(0.0).tolist() == (1 + two_domains.group_T).tolist()
