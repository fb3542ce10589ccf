"""The curve of two candidates and its metrics against brute force, closed forms and figures worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.metrics.deferral import apgr, apgr_ten_points, cpt, deferral_curve, pgr
from moe_lab.metrics.published import apgr_routellm_code, cpt_routellm_code


def random_pair(seed: int, items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, and qualities that differ in the mean."""
    rng = np.random.default_rng(seed)
    while True:
        weak, strong = rng.integers(0, 3, (2, items)) / 2
        if weak.mean() != strong.mean():
            return rng.integers(0, 4, items) / 4, weak, strong


def cuts(order: np.ndarray, weak: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """Quality after sending the first k of an order to the strong candidate, k = 0..N, one count at a time."""
    return np.array(
        [np.where(np.isin(np.arange(len(weak)), order[:k]), strong, weak).mean() for k in range(len(weak) + 1)]
    )


def test_the_curve_is_the_mean_over_all_orders_that_the_scores_allow() -> None:
    for seed in range(60):
        score, weak, strong = random_pair(seed, 5)
        orders = [
            order
            for order in itertools.permutations(range(5))
            if all(score[a] >= score[b] for a, b in itertools.pairwise(order))
        ]
        expected = np.mean([cuts(np.array(order), weak, strong) for order in orders], axis=0)
        np.testing.assert_allclose(deferral_curve(score, weak, strong).at(np.arange(6) / 5), expected)


def test_apgr_is_the_trapezoid_over_every_cut() -> None:
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        _, weak, strong = random_pair(seed, int(rng.integers(2, 12)))
        score = rng.permutation(len(weak)).astype(float)
        quality = cuts(np.argsort(-score), weak, strong)
        gaps = (quality - weak.mean()) / (strong.mean() - weak.mean())
        expected = sum((a + b) / 2 for a, b in itertools.pairwise(gaps)) / len(weak)
        assert apgr(deferral_curve(score, weak, strong)) == pytest.approx(expected)


def test_weights_count_items_as_often_as_they_say() -> None:
    for seed in range(200):
        score, weak, strong = random_pair(seed, 6)
        times = np.random.default_rng(seed).integers(0, 3, 6)
        times[0] += 1
        repeated = deferral_curve(*(np.repeat(values, times) for values in (score, weak, strong)))
        weighted = deferral_curve(score, weak, strong, times)
        grid = np.linspace(0, 1, 23)
        np.testing.assert_allclose(weighted.at(grid), repeated.at(grid), atol=1e-12)


def test_a_score_that_says_nothing_has_half() -> None:
    _, weak, strong = random_pair(3, 50)
    curve = deferral_curve(np.zeros(50), weak, strong)
    assert apgr(curve) == pytest.approx(0.5)
    assert apgr_ten_points(curve) == pytest.approx(0.5)
    assert [cpt(curve, share) for share in (0.2, 0.5, 0.8)] == pytest.approx([0.2, 0.5, 0.8])


def test_closed_forms_of_the_oracle() -> None:
    # A share g of items is gained, a share l is lost: up in a straight line, flat, down in a straight line.
    items, gained, lost = 1000, 300, 100
    gain = np.repeat([1.0, 0.0, -1.0], [gained, items - gained - lost, lost])
    curve = deferral_curve(gain, -np.minimum(gain, 0), np.maximum(gain, 0))
    g, l = gained / items, lost / items  # noqa: E741
    assert apgr(curve) == pytest.approx((g * g / 2 + (1 - g - l) * g + l * (g - l / 2)) / (g - l))
    assert cpt(curve, 0.5) == pytest.approx(0.5 * (g - l))
    # The worst order runs it backwards.
    worst = deferral_curve(-gain, -np.minimum(gain, 0), np.maximum(gain, 0))
    assert apgr(worst) == pytest.approx(1 - apgr(curve))
    assert cpt(worst, 1.0) == pytest.approx(1.0)


def test_a_curve_by_hand() -> None:
    # Sent over in order: +1, -1, +1, +1, 0; weak solves one of five, strong three.
    weak, strong = np.array([0.0, 1, 0, 0, 0]), np.array([1.0, 0, 1, 1, 0])
    curve = deferral_curve([5, 4, 3, 2, 1], weak, strong)
    assert curve.recovered_P == pytest.approx([0, 0.5, 0, 0.5, 1, 1])
    assert apgr(curve) == pytest.approx((0.25 + 0.25 + 0.25 + 0.75 + 1) / 5)
    assert cpt(curve, 0.5) == pytest.approx(0.2)  # the first time, although the curve falls again
    assert cpt(curve, 0.75) == pytest.approx(0.7)
    assert cpt(curve, 0.0) == 0.0
    assert cpt(curve, 1.01) == float("inf")


def test_the_public_code_reads_cpt_elsewhere_on_a_curve_that_falls() -> None:
    points = np.array([(0.0, 0.2), (0.2, 0.4), (0.4, 0.2), (0.6, 0.4), (0.8, 0.6), (1.0, 0.6)])
    assert cpt_routellm_code(points, 0.2, 0.6, 0.5) == pytest.approx(np.interp(0.4, points[:, 1], points[:, 0]))
    assert cpt_routellm_code(points, 0.2, 0.6, 0.5) != pytest.approx(0.2)
    rising = np.array([(0.0, 0.2), (0.5, 0.5), (1.0, 0.6)])
    assert cpt_routellm_code(rising, 0.2, 0.6, 0.5) == pytest.approx(1 / 3)


def test_the_public_code_averages_over_the_shares_it_saw() -> None:
    whole = np.array([(0.0, 0.2), (0.5, 0.5), (1.0, 0.6)])
    assert apgr_routellm_code(whole, 0.2, 0.6) == pytest.approx(((0.35 + 0.55) / 2 - 0.2) / 0.4)
    part = whole[1:]  # repeated scores: no threshold lies between 0 and 0.5
    assert apgr_routellm_code(part, 0.2, 0.6) == pytest.approx((0.55 - 0.2) / 0.4)


def test_equally_good_candidates_have_no_gap() -> None:
    with pytest.raises(LabError, match="both candidates have quality 0.5, so there is no gap to recover"):
        pgr(0.5, 0.5, 0.5)
