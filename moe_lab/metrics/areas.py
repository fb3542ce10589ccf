"""Any number of candidates: areas under quality against cost, and budgets read off the same points.

A point is (mean cost, mean quality) of one policy, such as one price of one router; quality is better when higher.
Legend: P points, N items, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moe_lab.metrics.choices import Choice, Floats
from moe_lab.metrics.hull import ZeroRouter, zero_router


@dataclass(frozen=True)
class CostRange:
    """The costs over which an area is taken: usually the cheapest and the dearest candidate's."""

    low: float
    high: float

    @staticmethod
    def of(cost: ArrayLike) -> CostRange:
        """From the candidates' mean costs."""
        return CostRange(float(np.min(cost)), float(np.max(cost)))


def quality_hull(points_P2: ArrayLike) -> ZeroRouter:
    """The non-decreasing concave hull: the best quality at each cost when policies may be mixed at random.

    It is the zero router of the points with loss = -quality.
    """
    return zero_router(np.asarray(points_P2, np.float64) * (1.0, -1.0))


def aiq(points_P2: ArrayLike, over: CostRange) -> float:
    """Average improvement in quality as the RouterBench paper defines it (arXiv:2403.12031, section 3.3).

        AIQ = 1 / (c_max - c_min) * integral from c_min to c_max of hull(c) dc

    The published code divides by something else: see `aiq_routerbench_code`. The points must begin at `over.low`;
    a router that can send everything to the cheapest candidate has a point there. With c_min = c_max it is the
    height of the hull there.
    """
    hull = quality_hull(points_P2)
    assert hull.costs_V[0] <= over.low * (1 + 1e-9) + 1e-12, "no point is as cheap as the range begins; add one"
    if over.high <= over.low:
        return -float(hull.at(over.low))
    inside = hull.costs_V[(hull.costs_V > over.low) & (hull.costs_V < over.high)]
    cost = np.concatenate([[over.low], inside, [over.high]])
    quality = -np.interp(cost, hull.costs_V, hull.losses_V)
    return float(np.trapezoid(quality, cost) / (over.high - over.low))


def deferral_area(points_P2: ArrayLike, over: CostRange) -> float:
    """Mean height of the curve as it was measured, straight between its points in order of cost, without a hull.

    A straight line is what throwing dice between the two prices at its ends reaches, so all of the curve is a policy
    that was fixed before any outcome was seen; `aiq` picks its prices by the outcomes that it then counts. Points of
    equal cost count with their mean. Left of the first point and right of the last it is flat.
    """
    cost, quality = _measured_line(points_P2)
    if over.high <= over.low:
        return float(np.interp(over.low, cost, quality))
    grid = np.unique(np.concatenate([[over.low], np.clip(cost, over.low, over.high), [over.high]]))
    return float(np.trapezoid(np.interp(grid, cost, quality), grid) / (over.high - over.low))


def quality_at_budget(points_P2: ArrayLike, budget: ArrayLike) -> Floats:
    """Mean quality at mean costs: that of the two points nearest in cost, mixed at random to meet the budget.

    Which two are mixed depends on costs alone, so a lucky price is not picked. Flat right of the last point, and left
    of the first.
    """
    return np.interp(np.asarray(budget, np.float64), *_measured_line(points_P2))


def cost_at_quality(points_P2: ArrayLike, quality: float) -> float:
    """The least mean cost from which on the measured curve is nowhere below a quality; infinite if its dear end is.

    At the quality of the dearest candidate this is the cost at iso-quality. The first cost at which the curve gets
    there would be a price picked by the outcomes that it is judged by.
    """
    cost, reached = _measured_line(points_P2)
    # A mean of the same outcomes in another order may round to a hair below itself.
    below = np.flatnonzero(reached < quality - 1e-12 * max(1.0, abs(quality)))
    if not len(below):
        return float(cost[0])
    last = below[-1]
    if last == len(cost) - 1:
        return float("inf")
    part = (quality - reached[last]) / (reached[last + 1] - reached[last])
    return float(cost[last] + min(1.0, part) * (cost[last + 1] - cost[last]))


def _measured_line(points_P2: ArrayLike) -> tuple[Floats, Floats]:
    """Costs, rising strictly, and the mean quality of the points that have each."""
    points = np.asarray(points_P2, np.float64)
    cost, place, times = np.unique(points[:, 0], return_inverse=True, return_counts=True)
    return cost, np.bincount(place, points[:, 1]) / times


def area_by_item(choices: list[Choice], quality_NC: ArrayLike, cost_NC: ArrayLike) -> Floats:
    """What each item adds to the area under a router's curve [N]: their mean is `deferral_area`.

    The area is made of products of mean costs and mean qualities. Here it is linear in the items (the delta method),
    so that intervals of differences are those of a mean over items.

    Args:
        choices: of rising prices, as `price_grid` has them: from the dear end of the curve to all items on the
            cheapest candidate. The curve is flat from its dear end to the cost of the dearest candidate.
    """
    quality, cost = np.asarray(quality_NC, np.float64), np.asarray(cost_NC, np.float64)
    rows, dearest = np.arange(len(quality)), int(cost.mean(axis=0).argmax())
    rising = choices[::-1]
    quality_PN = np.stack([quality[rows, choice] for choice in [*rising, rising[-1]]])
    cost_PN = np.stack([*(cost[rows, choice] for choice in rising), cost[:, dearest]])
    range_N = cost_PN[-1] - cost_PN[0]
    width = range_N.mean()
    if width <= 0:
        return quality_PN[-1]
    height_PN, step_PN = (quality_PN[1:] + quality_PN[:-1]) / 2, np.diff(cost_PN, axis=0)
    height_P, step_P = height_PN.mean(axis=1), step_PN.mean(axis=1)
    area = height_P @ step_P / width
    return (height_P @ step_PN + step_P @ height_PN - area * range_N) / width


@dataclass(frozen=True)
class Picked:
    """Cost and quality of every item under each of several policies, to be weighed anew in each resample."""

    cost_PN: Floats
    quality_PN: Floats

    @staticmethod
    def of(choices: list[Choice], quality_NC: Floats, cost_NC: Floats) -> Picked:
        """Of each choice [N]."""
        rows = np.arange(len(quality_NC))
        return Picked(
            np.stack([cost_NC[rows, choice] for choice in choices]),
            np.stack([quality_NC[rows, choice] for choice in choices]),
        )

    def points(self, weight_N: Floats) -> Floats:
        """(mean cost, mean quality) of each policy [P, 2] when the items count that often."""
        return np.stack([values_PN @ weight_N for values_PN in (self.cost_PN, self.quality_PN)], 1) / weight_N.sum()


def mix_to_budget(
    cheap_N: Choice, dear_N: Choice, cost_NC: ArrayLike, budget: float, *, seed: int = 0
) -> tuple[Choice, float]:
    """Meets a budget with two choices, such as those of two prices: which items follow the dear one.

    Items are switched from `cheap_N` to `dear_N` in a random order until the next would pass the budget; that one is
    switched by a coin of the chance returned with it. So the mean cost is the budget in expectation over the coin,
    and within one item's cost of it, never above, as returned. (Cascade routing, arXiv:2410.10347, draws a coin for
    every item, with gamma = (B - c_cheap) / (c_dear - c_cheap); that meets the budget only on average over items.)

    Returns:
        The choice [N] with the coin falling on the cheap side, and the chance of the dear side for the next item.
    """
    cost = np.asarray(cost_NC, np.float64)
    rows = np.arange(len(cheap_N))
    extra_N = cost[rows, dear_N] - cost[rows, cheap_N]
    left = budget * len(rows) - cost[rows, cheap_N].sum()
    assert left >= -1e-9 * max(1.0, abs(budget) * len(rows)), "the cheap choice alone is above the budget"
    order = np.random.default_rng(seed).permutation(np.flatnonzero(cheap_N != dear_N))
    spent = np.cumsum(extra_N[order])
    if not len(order) or spent[-1] <= left:
        return dear_N.copy(), 0.0
    # Costs may differ by item, so a dear choice can be the cheaper one here and there; the first that passes ends it.
    fit = int(np.argmax(spent > left + 1e-12 * max(1.0, abs(left))))
    mixed = cheap_N.copy()
    mixed[order[:fit]] = dear_N[order[:fit]]
    before = spent[fit - 1] if fit else 0.0
    return mixed, float(np.clip((left - before) / extra_N[order[fit]], 0.0, 1.0))


def policy_points(choices: list[Choice], quality_NC: ArrayLike, cost_NC: ArrayLike) -> Floats:
    """(mean cost, mean quality) of each choice [P, 2]."""
    quality, cost = np.asarray(quality_NC, np.float64), np.asarray(cost_NC, np.float64)
    rows = np.arange(len(quality))
    return np.array([(cost[rows, choice].mean(), quality[rows, choice].mean()) for choice in choices])
