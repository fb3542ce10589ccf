"""Areas and budgets against brute force over all mixtures of two, closed forms and tables worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moe_lab.metrics.areas import (
    CostRange,
    Picked,
    aiq,
    area_by_item,
    cost_at_quality,
    deferral_area,
    mix_to_budget,
    policy_points,
    quality_at_budget,
)
from moe_lab.metrics.bootstrap import statistic_intervals
from moe_lab.metrics.choices import choose
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


def test_aiq_is_that_of_the_best_mixture_of_two() -> None:
    for seed in range(1000):
        points = random_points(seed)
        over = CostRange.of(points[:, 0])
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


def neighbours_mixture(points: np.ndarray, cost: float) -> float:
    """Quality of the two points nearest in cost, mixed to meet it; of several at one cost, of all evenly."""
    left, right = points[points[:, 0] <= cost], points[points[:, 0] >= cost]
    below, above = left[:, 0].max(), right[:, 0].min()
    low, high = left[left[:, 0] == below, 1].mean(), right[right[:, 0] == above, 1].mean()
    return low if above == below else low + (high - low) * (cost - below) / (above - below)


def test_budgets_and_areas_are_of_the_points_themselves_and_pick_no_lucky_one() -> None:
    for seed in range(400):
        points = random_points(seed)
        over = CostRange.of(points[:, 0])
        fine = np.linspace(over.low, over.high, 61)
        heights = np.array([neighbours_mixture(points, cost) for cost in fine])
        np.testing.assert_allclose(quality_at_budget(points, fine), heights, atol=1e-12)
        assert quality_at_budget(points, over.high + 1) == pytest.approx(heights[-1])
        if over.high > over.low:
            # Few whole costs: every corner lies on the grid.
            assert deferral_area(points, over) == pytest.approx(np.trapezoid(heights, fine) / np.ptp(fine), abs=1e-9)
        for wanted in (0.5, 2.0, float(heights[-1])):
            reached = cost_at_quality(points, wanted)
            if np.isinf(reached):
                assert heights[-1] < wanted
            else:
                assert (heights[fine >= reached] >= wanted - 1e-9).all()
                below = fine[fine < reached - 1e-9]
                assert not len(below) or heights[len(below) - 1] < wanted + 1e-9


def test_noise_is_a_gain_by_the_hull_and_none_by_the_curve() -> None:
    """Two equal candidates, and prices whose choices are dice: the truth is a flat line at one half."""
    by_hull, by_curve = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        quality_NC = (rng.random((300, 2)) < 0.5).astype(float)
        score_N = rng.random(300)
        choices = [(score_N > share).astype(np.intp) for share in np.linspace(0, 1, 41)]
        points = policy_points(choices, quality_NC, np.tile([1.0, 2.0], (300, 1)))
        line = points[[0, -1]]
        over = CostRange(1.0, 2.0)
        by_hull.append(aiq(points, over) - aiq(line, over))
        by_curve.append(deferral_area(points, over) - deferral_area(line, over))
    error = np.std(by_curve) / 60**0.5
    assert abs(np.mean(by_curve)) < 3 * error
    assert np.mean(by_hull) > 5 * error


def test_the_area_by_item_is_the_area_and_its_spread() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        quality_NC, predicted_NC = rng.random((200, 3)), rng.random((200, 3))
        cost_NC = np.tile([1.0, 2.0, 5.0], (200, 1)) * (rng.random((200, 1)) + 0.5 if seed % 2 else 1)
        relative_C = np.array([0.2, 0.4, 1.0])
        choices = [choose(-predicted_NC, relative_C, price) for price in np.linspace(0, 6, 30)]

        def area(weight_N: np.ndarray, choices=choices, quality_NC=quality_NC, cost_NC=cost_NC) -> float:
            mean_C = weight_N @ cost_NC / weight_N.sum()
            points = Picked.of(choices, quality_NC, cost_NC).points(weight_N)
            return deferral_area(points, CostRange(mean_C[0], mean_C[2]))

        shares_N = area_by_item(choices, quality_NC, cost_NC)
        assert shares_N.mean() == pytest.approx(area(np.ones(200)), abs=1e-9)
        for item in (0, 17, 199):
            weight_N = np.ones(200)
            weight_N[item] += 1e-4
            slope = (area(weight_N) - area(np.ones(200))) / 1e-4 * 200
            assert slope == pytest.approx(shares_N[item] - shares_N.mean(), abs=0.02)


def test_two_candidates_by_hand() -> None:
    points, over = np.array([(1.0, 0.4), (3.0, 0.8)]), CostRange(1.0, 3.0)
    assert aiq(points, over) == pytest.approx(0.6)
    assert aiq_routerbench_code(points) == pytest.approx(1.2 / 3)  # divided by the greatest cost, 3
    assert aiq_routerbench_code(points, max_cost=4.0) == pytest.approx((1.2 + 0.8) / 4)
    assert aiq_routerbench_code(points, max_cost=2.0) == pytest.approx(1.2 / 3)  # its own is the greatest
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
    assert deferral_area([(2.0, 0.3), (2.0, 0.7)], CostRange(2.0, 2.0)) == 0.5
    assert deferral_area([(1.0, 0.2), (3.0, 0.6)], CostRange(2.0, 2.0)) == pytest.approx(0.4)
    # Where nothing costs more than the rest, the price is no matter: the quality at no price.
    choices = [np.array([0, 1]), np.array([1, 1]), np.array([1, 0])]
    assert area_by_item(choices, [[0.3, 0.5], [0.1, 0.7]], np.ones((2, 2))).tolist() == [0.3, 0.7]
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


def test_an_area_ends_where_its_range_does() -> None:
    points = [(0.0, 0.0), (4.0, 0.8)]
    assert deferral_area(points, CostRange(1.0, 3.0)) == pytest.approx(0.4)
    assert deferral_area(points, CostRange(-1.0, 5.0)) == pytest.approx((0 + 0.4 * 4 + 0.8) / 6)


def test_the_area_by_item_of_three_prices_by_hand() -> None:
    """Costs far below one, and each price another choice: from 0.1 and quality 0 to 0.25 and 0.75, flat until 0.3."""
    quality_NC, cost_NC = np.array([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), np.tile([0.1, 0.3], (4, 1))
    choices = [np.array([1, 0, 1, 1]), np.array([1, 0, 0, 0]), np.array([0, 0, 0, 0])]
    shares = area_by_item(choices, quality_NC, cost_NC)
    area = (0.05 * 0.125 + 0.1 * 0.5 + 0.05 * 0.75) / 0.2
    assert shares.mean() == pytest.approx(area)
    assert deferral_area(policy_points(choices, quality_NC, cost_NC), CostRange(0.1, 0.3)) == pytest.approx(area)
    # The second item is on the cheap candidate throughout and adds none of its own, but it takes part in the means.
    assert shares[1] < shares[0]
    assert shares[2] == pytest.approx(shares[3])


def test_resamples_keep_strata_repeat_by_seed_and_leave_out_what_is_no_number() -> None:
    values, strata = np.array([0.0, 0.0, 0.0, 8.0, 8.0, 8.0]), np.array([0, 0, 0, 1, 1, 1])

    def mean(weight: np.ndarray) -> float:
        return float(weight @ values / weight.sum())

    [apart] = statistic_intervals(mean, 6, strata=strata, resamples=50)
    assert (apart.low, apart.mean, apart.high) == (4.0, 4.0, 4.0)
    [together] = statistic_intervals(mean, 6, resamples=50)
    assert together.low < 4 < together.high
    many = np.random.default_rng(0).normal(size=40)
    [first], [again], [other] = (
        statistic_intervals(lambda weight: weight @ many, 40, resamples=50, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    [lost] = statistic_intervals(lambda weight: 1.0 if (weight == 1).all() else float("nan"), 6, resamples=20)
    assert (lost.low, lost.mean, lost.high) == (1.0, 1.0, 1.0)
