"""Reference routers on a token-level outcome table, and the points of quality-cost curves with intervals.

Legend: T tokens, C candidates, U units (document rows), G groups (domains), V vertices of the hull.
Loss is in bits, cost in multiply-adds per token, price in bits per multiply-add. A choice is the index of a
candidate for each token [T].
Ties in `loss + price * cost` go to the cheaper candidate, and between equally dear ones to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_lab.evaluation.bootstrap import paired_difference_interval, ratio_interval
from moe_lab.evaluation.results import CurvePoint

Floats = NDArray[np.float64]
Choice = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class TokenOutcomes:
    """What every candidate loses on every token, and what it costs. Masked positions are not in it."""

    loss_TC: Floats
    cost_C: Floats
    unit_T: NDArray[np.integer]
    group_T: NDArray[np.integer]
    bytes_T: NDArray[np.integer]

    def __post_init__(self) -> None:
        tokens, candidates = self.loss_TC.shape
        assert tokens > 0, "no tokens"
        assert self.cost_C.shape == (candidates,), "one cost a candidate"
        for labels in (self.unit_T, self.group_T, self.bytes_T):
            assert labels.shape == (tokens,), "one unit, group and number of bytes a token"
            assert labels.min() >= 0, "units, groups and bytes count from zero"
        assert np.isfinite(self.loss_TC).all(), "a loss is not a finite number"
        assert self.cost_C.min() >= 0, "a cost is negative"

    @property
    def num_units(self) -> int:
        return int(self.unit_T.max()) + 1

    @cached_property
    def bytes_U(self) -> Floats:
        """Bytes of each unit."""
        return self.per_unit(self.bytes_T)

    @cached_property
    def bits_UC(self) -> Floats:
        """Bits of each unit under each candidate used alone."""
        return np.stack([self.per_unit(column) for column in self.loss_TC.T], axis=1)

    @cached_property
    def strata_U(self) -> NDArray[np.int64]:
        """The group of each unit's first token: rows are cut within one domain."""
        strata = np.full(self.num_units, -1, np.int64)
        strata[self.unit_T[::-1]] = self.group_T[::-1]
        return strata

    def per_unit(self, values_T: ArrayLike) -> Floats:
        """Sums of a per-token quantity over each unit [U]."""
        weights = np.asarray(values_T, np.float64)
        return np.bincount(self.unit_T, weights, minlength=self.num_units).astype(np.float64)

    def bits_per_unit(self, choice_T: Choice) -> Floats:
        """Bits of each unit when token t uses candidate `choice_T[t]` [U]."""
        return self.per_unit(np.take_along_axis(self.loss_TC, choice_T[:, None], axis=1)[:, 0])

    def fixed_points(self) -> Floats:
        """(mean cost, bits per byte) of every candidate used alone [C, 2]: what `zero_router` takes."""
        return np.stack([self.cost_C, self.bits_UC.sum(axis=0) / self.bytes_U.sum()], axis=1)


def fixed(candidate: int, tokens: int) -> Choice:
    """The choice of one candidate for all tokens."""
    return np.full(tokens, candidate, np.intp)


def best_fixed(loss_TC: ArrayLike, cost_C: ArrayLike, price: float) -> int:
    """The one candidate with the least mean `loss + price * cost`."""
    mean_1C = np.asarray(loss_TC, np.float64).mean(axis=0, keepdims=True)
    return int(_cheapest_argmin(mean_1C, np.asarray(cost_C), price)[0])


def group_table(
    loss_TC: ArrayLike, cost_C: ArrayLike, group_T: ArrayLike, price: float, *, num_groups: int | None = None
) -> Choice:
    """The best candidate of each group at a price, decided on the rows given; `table[test_group]` applies it.

    A group without tokens here gets the best fixed candidate.

    Returns:
        Candidates [G], with G = `num_groups` or the largest group + 1.
    """
    loss, group = np.asarray(loss_TC, np.float64), np.asarray(group_T)
    groups = num_groups if num_groups is not None else int(group.max()) + 1
    tokens_G = np.bincount(group, minlength=groups)
    sums_GC = np.stack([np.bincount(group, column, minlength=groups) for column in loss.T], axis=1)
    mean_GC = sums_GC / np.maximum(tokens_G, 1)[:, None]
    table = _cheapest_argmin(mean_GC, np.asarray(cost_C), price)
    table[tokens_G == 0] = best_fixed(loss, cost_C, price)
    return table


def oracle(loss_TC: ArrayLike, cost_C: ArrayLike, price: float) -> Choice:
    """The best candidate of each token at a price, chosen with the outcome in sight: the bound of all."""
    return _cheapest_argmin(np.asarray(loss_TC, np.float64), np.asarray(cost_C), price)


@dataclass(frozen=True)
class ZeroRouter:
    """The best quality that mixing fixed candidates at random reaches at each cost: the floor of any router.

    `costs_V` rises strictly and `losses_V` falls strictly and convexly, from the cheapest candidate to the
    cheapest of the best. `candidates_V` are the vertices' indices among the `num_candidates` points given.
    """

    costs_V: Floats
    losses_V: Floats
    candidates_V: Choice
    num_candidates: int

    def at(self, cost: ArrayLike) -> Floats:
        """Loss at a cost: linear between vertices, flat to the right, infinite left of the cheapest."""
        cost = np.asarray(cost, np.float64)
        return np.where(self._affordable(cost), np.interp(cost, self.costs_V, self.losses_V), np.inf)

    def weights(self, cost: float) -> Floats:
        """How much of each candidate the mixture at `cost` uses [C]; sums to 1."""
        assert self._affordable(np.asarray(cost)), f"nothing costs as little as {cost}"
        weights_C = np.zeros(self.num_candidates)
        right = min(int(np.searchsorted(self.costs_V, cost)), len(self.costs_V) - 1)
        left = max(right - 1, 0)
        gap = self.costs_V[right] - self.costs_V[left]
        share = np.clip((cost - self.costs_V[left]) / gap, 0, 1) if gap > 0 else 1.0
        weights_C[self.candidates_V[left]] += 1 - share
        weights_C[self.candidates_V[right]] += share
        return weights_C

    def _affordable(self, cost: NDArray) -> NDArray[np.bool_]:
        # A mean over tokens that all chose the cheapest may round to just below its cost.
        return cost >= self.costs_V[0] * (1 - 1e-9)


def zero_router(points_C2: ArrayLike) -> ZeroRouter:
    """Lower convex hull of fixed candidates' (cost, loss), in any unit that is a mean over tokens or bytes.

    Take the points from the rows that the other routers were decided on, and apply `weights` to the test
    rows: vertices picked on the test rows flatter it.
    """
    points = np.asarray(points_C2, np.float64)
    assert points.ndim == 2, "points are rows of (cost, loss)"
    assert points.shape[1] == 2, "points are rows of (cost, loss)"
    assert len(points) > 0, "no points"
    assert np.isfinite(points).all(), "a point is not finite"
    vertices: list[int] = []
    for index in np.lexsort((points[:, 1], points[:, 0])):
        if vertices and points[index, 1] >= points[vertices[-1], 1]:
            continue
        while len(vertices) > 1 and not _turns_left(points, vertices[-2], vertices[-1], index):
            vertices.pop()
        vertices.append(int(index))
    chosen = np.asarray(vertices, np.intp)
    return ZeroRouter(points[chosen, 0], points[chosen, 1], chosen, len(points))


def curve_point(
    bits_U: ArrayLike,
    bytes_U: ArrayLike,
    cost: float,
    *,
    price: float | None = None,
    zero_bits_U: ArrayLike | None = None,
    strata_U: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> CurvePoint:
    """A point with its interval from per-unit sums; with `zero_bits_U`, also the paired difference to it."""
    quality = ratio_interval(bits_U, bytes_U, strata=strata_U, resamples=resamples, seed=seed)
    difference = None
    if zero_bits_U is not None:
        difference = paired_difference_interval(
            bits_U, zero_bits_U, bytes_U, strata=strata_U, resamples=resamples, seed=seed
        )
    return CurvePoint(price=price, cost=float(cost), bits_per_byte=quality, difference_to_zero=difference)


def choice_point(
    outcomes: TokenOutcomes,
    choice_T: Choice,
    *,
    price: float | None = None,
    zero: ZeroRouter | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> CurvePoint:
    """The point of one choice; with `zero`, also its difference to that mixture at the same mean cost."""
    cost = float(outcomes.cost_C[choice_T].mean())
    return curve_point(
        outcomes.bits_per_unit(choice_T),
        outcomes.bytes_U,
        cost,
        price=price,
        zero_bits_U=None if zero is None else outcomes.bits_UC @ zero.weights(cost),
        strata_U=outcomes.strata_U,
        resamples=resamples,
        seed=seed,
    )


def price_curve(
    outcomes: TokenOutcomes,
    prices: Iterable[float],
    decide: Callable[[float], Choice],
    *,
    zero: ZeroRouter | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[CurvePoint]:
    """One point for each price, in order of cost; `decide(price)` gives the choice [T] on these outcomes."""
    points = [
        choice_point(outcomes, decide(price), price=price, zero=zero, resamples=resamples, seed=seed)
        for price in prices
    ]
    return sorted(points, key=lambda point: (point.cost, point.bits_per_byte.mean))


def zero_curve(outcomes: TokenOutcomes, zero: ZeroRouter, *, resamples: int = 1000, seed: int = 0) -> list[CurvePoint]:
    """The zero router's vertices measured on `outcomes`; between two vertices it is the straight line."""
    return [
        choice_point(outcomes, fixed(candidate, len(outcomes.unit_T)), resamples=resamples, seed=seed)
        for candidate in zero.candidates_V.tolist()
    ]


def _cheapest_argmin(loss_NC: Floats, cost_C: NDArray, price: float) -> Choice:
    by_cost_C = np.argsort(cost_C, kind="stable")
    total_NC = (loss_NC + price * cost_C)[:, by_cost_C]
    return by_cost_C[np.argmin(total_NC, axis=1)]


def _turns_left(points: Floats, a: int, b: int, c: int) -> bool:
    """Whether the path a, b, c bends upwards, so that b lies below the line from a to c."""
    (ax, ay), (bx, by), (cx, cy) = points[[a, b, c]]
    return bool((bx - ax) * (cy - ay) > (by - ay) * (cx - ax))
