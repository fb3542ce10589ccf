"""The zero router by hand: corners, mixtures, and what lies outside of them."""

from __future__ import annotations

import numpy as np
import pytest

from moe_lab.metrics.hull import zero_router

POINTS = [(6.0, 1.0), (0.0, 4.0), (1.0, 3.9), (2.0, 2.0), (5.0, 2.5)]


def test_corners_are_of_the_points_given() -> None:
    hull = zero_router(POINTS)
    assert hull.candidates_V.tolist() == [1, 3, 0]
    assert hull.costs_V.tolist() == [0.0, 2.0, 6.0]
    assert hull.losses_V.tolist() == [4.0, 2.0, 1.0]
    assert hull.num_candidates == 5


@pytest.mark.parametrize(
    ("points", "corners"),
    [
        ([(0, 1.0), (1, 1.0)], [0]),  # as good and dearer
        ([(1, 1.0), (1, 0.5), (1, 0.5)], [1]),  # of equal cost the best, of equal ones the first
        ([(0, 2.0), (1, 1.0), (2, 0.0)], [0, 2]),  # on the line between two others
        ([(3, 0.0), (1, 2.0)], [1, 0]),
        ([(2, 1.0)], [0]),
    ],
)
def test_who_is_a_corner(points, corners) -> None:
    assert zero_router(points).candidates_V.tolist() == corners


@pytest.mark.parametrize(
    ("cost", "weights"),
    [
        (0.0, [0, 1, 0, 0, 0]),
        (0.5, [0, 0.75, 0, 0.25, 0]),
        (2.0, [0, 0, 0, 1, 0]),
        (3.0, [0.25, 0, 0, 0.75, 0]),
        (6.0, [1, 0, 0, 0, 0]),
        (60.0, [1, 0, 0, 0, 0]),
    ],
)
def test_a_mixture_costs_what_it_may_and_loses_what_the_hull_says(cost, weights) -> None:
    hull = zero_router(POINTS)
    found = hull.weights(cost)
    np.testing.assert_allclose(found, weights)
    spent, lost = found @ np.array(POINTS)
    assert spent == pytest.approx(min(cost, 6.0))
    assert lost == pytest.approx(float(hull.at(cost)))


def test_below_the_cheapest_there_is_nothing_but_rounding() -> None:
    hull = zero_router([(3.0, 2.0), (9.0, 1.0)])
    assert hull.at(2.9) == np.inf
    assert hull.at(3.0 * (1 - 1e-12)) == pytest.approx(2.0)
    np.testing.assert_allclose(hull.weights(3.0 * (1 - 1e-12)), [1, 0])
    with pytest.raises(AssertionError, match="nothing costs as little as 2"):
        hull.weights(2.0)
    assert zero_router([(4.0, 1.0)]).weights(5.0).tolist() == [1.0]


@pytest.mark.parametrize("points", [[], [[1.0]], [1.0, 2.0], [[0.0, np.nan]]])
def test_what_is_no_table_of_points_is_refused(points) -> None:
    with pytest.raises(AssertionError, match="point"):
        zero_router(points)
