"""Areas and budgets against brute force over all mixtures of two, closed forms and tables worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moe_lab.metrics.areas import (
    CostRange,
    aiq,
    cost_at_quality,
    deferral_area,
    mix_to_budget,
    policy_points,
    quality_at_budget,
)
from moe_lab.metrics.bootstrap import statistic_intervals
from moe_lab.metrics.published import aiq_routerbench_code, area_cascade_routing_code


def random_points(seed: int) -> np.ndarray:
    """Few values, so that costs and qualities repeat."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, (int(rng.integers(1, 8)), 2)).astype(float)


def best_mixture(points: np.ndarray, cost: float) -> float:
    """The best quality of any two points, mixed at any ratio, for at most a cost."""
    found = [quality for spent, quality in points if spent <= cost]
    for (left, low), (right, high) in itertools.permutations(points.tolist(), 2):
        if left <= cost < right:
            found.append(low + (high - low) * (cost - left) / (right - left))
    return max(found)


def test_aiq_and_budgets_are_those_of_the_best_mixture_of_two() -> None:
    for seed in range(1000):
        points = random_points(seed)
        over = CostRange.of(points[:, 0])
        for budget in np.linspace(over.low, over.high, 5):
            best = best_mixture(points, budget)
            assert quality_at_budget(points, budget) == pytest.approx(best)
            assert cost_at_quality(points, best) <= budget + 1e-9
        # Between two costs that occur the best mixture is straight, so trapezoids over those are exact.
        grid = np.unique(points[:, 0])
        heights = [best_mixture(points, cost) for cost in grid]
        area = sum(
            (right - left) * (low + high) / 2
            for (left, right), (low, high) in zip(itertools.pairwise(grid), itertools.pairwise(heights), strict=True)
        )
        expected = area / (over.high - over.low) if over.high > over.low else heights[0]
        assert aiq(points, over) == pytest.approx(expected)
        assert deferral_area(points, over) <= expected + 1e-9


def test_two_candidates_by_hand() -> None:
    points, over = np.array([(1.0, 0.4), (3.0, 0.8)]), CostRange(1.0, 3.0)
    assert aiq(points, over) == pytest.approx(0.6)
    assert aiq_routerbench_code(points) == pytest.approx(1.2 / 3)  # divided by the greatest cost, 3
    assert aiq_routerbench_code(points, max_cost=4.0) == pytest.approx((1.2 + 0.8) / 4)
    assert area_cascade_routing_code(points, points) == pytest.approx(0.6)


def test_the_definitions_differ_on_a_router_that_begins_dear() -> None:
    candidates = np.array([(1.0, 0.4), (3.0, 0.8)])
    router = np.array([(2.0, 0.7), (3.0, 0.8)])
    over = CostRange.of(candidates[:, 0])
    assert aiq(np.vstack([router, candidates]), over) == pytest.approx((0.55 + 0.75) / 2)
    assert aiq_routerbench_code(router) == pytest.approx(0.75 / 3)
    assert area_cascade_routing_code(router, candidates) == pytest.approx((0.55 + 0.75) / 2)
    with pytest.raises(AssertionError, match="no point is as cheap"):
        aiq(router, over)


def test_cascade_routing_begins_at_the_least_quality_of_any_candidate() -> None:
    # The dear candidate is the worst: left of the first point the curve begins at 0.1, not at the cheapest's 0.5.
    candidates = np.array([(0.0, 0.5), (4.0, 0.1)])
    assert area_cascade_routing_code([(2.0, 0.5)], candidates) == pytest.approx((0.3 * 2 + 0.5 * 2) / 4)


def test_points_outside_of_the_range_shape_the_line_across_its_end() -> None:
    candidates = np.array([(1.0, 0.2), (3.0, 0.6)])
    assert area_cascade_routing_code([(0.0, 0.0), (4.0, 0.8)], candidates) == pytest.approx(0.4)


def test_the_hull_passes_over_a_dip_and_the_plain_area_does_not() -> None:
    points, over = np.array([(0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (3.0, 1.0)]), CostRange(0.0, 3.0)
    assert aiq(points, over) == pytest.approx((0.5 + 1 + 1) / 3)
    assert deferral_area(points, over) == pytest.approx(0.5)
    assert aiq_routerbench_code(points) == pytest.approx(2.5 / 3)


def test_equal_costs_and_one_candidate() -> None:
    assert aiq([(2.0, 0.3), (2.0, 0.7)], CostRange(2.0, 2.0)) == 0.7
    assert aiq([(2.0, 0.3)], CostRange(2.0, 2.0)) == 0.3
    assert deferral_area([(2.0, 0.3), (2.0, 0.7)], CostRange(2.0, 2.0)) == 0.7
    assert cost_at_quality([(2.0, 0.3)], 0.4) == float("inf")


def test_routerbench_code_is_the_hull_scaled_for_rising_points() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        cost, quality = np.sort(rng.permutation(20)[:6]) + 1.0, np.sort(rng.random(6))
        points, over = np.stack([cost, quality], axis=1), CostRange(cost[0], cost[-1])
        expected = aiq(points, over) * (over.high - over.low) / over.high
        assert aiq_routerbench_code(points) == pytest.approx(expected)


def test_a_budget_is_met_exactly_by_mixing_two_prices() -> None:
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        items, candidates = int(rng.integers(1, 20)), int(rng.integers(2, 5))
        cost_NC = rng.random((items, candidates)) if seed % 2 else np.tile(rng.random(candidates), (items, 1))
        rows = np.arange(items)
        cheap, dear = cost_NC.argmin(axis=1), cost_NC.argmax(axis=1)
        low, high = cost_NC[rows, cheap].mean(), cost_NC[rows, dear].mean()
        budget = low + rng.random() * (high - low)
        mixed, chance = mix_to_budget(cheap, dear, cost_NC, budget, seed=seed)
        assert set(map(tuple, np.stack([rows, mixed], 1))) <= set(map(tuple, np.stack([rows, cheap], 1))) | set(
            map(tuple, np.stack([rows, dear], 1))
        )
        spent = cost_NC[rows, mixed].mean()
        assert spent <= budget + 1e-12
        assert budget - spent <= np.ptp(cost_NC, axis=1).max() / items + 1e-12
        order = np.random.default_rng(seed).permutation(np.flatnonzero(cheap != dear))
        coin = next(n for n in order if mixed[n] == cheap[n])
        assert spent + chance * (cost_NC[coin, dear[coin]] - cost_NC[coin, cheap[coin]]) / items == pytest.approx(
            budget
        )


def test_a_budget_above_the_dear_choice_takes_it() -> None:
    mixed, chance = mix_to_budget(np.array([0, 0]), np.array([1, 1]), np.array([[1.0, 2.0]] * 2), 5.0)
    assert mixed.tolist() == [1, 1]
    assert chance == 0.0


def test_policy_points_by_hand() -> None:
    quality, cost = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[1.0, 3.0], [2.0, 6.0]])
    assert policy_points([np.array([0, 1]), np.array([1, 0])], quality, cost).tolist() == [[3.5, 0.0], [2.5, 1.0]]


def test_intervals_of_any_statistic_hold_the_truth_and_pair_differences() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    other = values + 0.01 * rng.normal(size=400) + 0.1

    def means(weight: np.ndarray) -> list[float]:
        a, b = np.average(values, weights=weight), np.average(other, weights=weight)
        return [a, b, b - a]

    first, second, difference = statistic_intervals(means, 400, resamples=400)
    error = values.std() / np.sqrt(400)
    assert first.high - first.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert second.low < first.high  # apart they cannot be told from each other
    assert difference.low > 0.09  # paired they can
    assert difference.high < 0.11
