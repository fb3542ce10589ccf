"""The points of quality-cost curves on a token-level outcome table, with intervals.

Legend: T tokens, C candidates, U units (document rows), G groups (domains), V vertices of the hull.
Loss is in bits, cost in multiply-adds per token, price in bits per multiply-add. A choice is the index of a
candidate for each token [T]. The reference routers themselves are in `moe_lab.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_lab.evaluation.results import CurvePoint
from moe_lab.metrics.bootstrap import Interval, paired_difference_interval, ratio_interval
from moe_lab.metrics.choices import Choice, Floats, fixed
from moe_lab.metrics.hull import ZeroRouter


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


CostAndBits = tuple[float, Floats]
"""What a router did at one price: mean cost, and bits of each unit [U]."""


def bits_at_cost(passes: Sequence[CostAndBits], cost: float) -> Floats | None:
    """Bits of each unit [U] when the two passes nearest in cost are mixed at random to meet a cost.

    At more than the dearest pass costs, those of the dearest; None where all cost more.
    """
    ordered = sorted(passes, key=lambda made: made[0])
    cheaper = [made for made in ordered if made[0] <= cost]
    if not cheaper:
        return None
    (low, bits_U), dearer = cheaper[-1], ordered[len(cheaper) :]
    if not dearer:
        return bits_U
    high, dear_bits_U = dearer[0]
    return bits_U + (cost - low) / (high - low) * (dear_bits_U - bits_U)


def choice_point(
    outcomes: TokenOutcomes,
    choice_T: Choice,
    *,
    price: float | None = None,
    zero: ZeroRouter | None = None,
    routed: Sequence[CostAndBits] = (),
    told: Sequence[CostAndBits] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> CurvePoint:
    """The point of one choice; with `zero`, also its difference to that mixture at the same mean cost.

    With `routed`, passes of a router, also the difference of that router at the same mean cost to this choice; with
    `told`, passes of that router with the domain told, the difference of those.
    """
    cost, bits_U = float(outcomes.cost_C[choice_T].mean()), outcomes.bits_per_unit(choice_T)
    draws: dict[str, Any] = {"strata": outcomes.strata_U, "resamples": resamples, "seed": seed}

    def difference(passes: Sequence[CostAndBits]) -> Interval | None:
        at_cost_U = bits_at_cost(passes, cost)
        return None if at_cost_U is None else paired_difference_interval(at_cost_U, bits_U, outcomes.bytes_U, **draws)

    point = curve_point(
        bits_U,
        outcomes.bytes_U,
        cost,
        price=price,
        zero_bits_U=None if zero is None else outcomes.bits_UC @ zero.weights(cost),
        strata_U=outcomes.strata_U,
        resamples=resamples,
        seed=seed,
    )
    return point.model_copy(update={"routed_difference": difference(routed), "told_difference": difference(told)})


def price_curve(
    outcomes: TokenOutcomes,
    prices: Iterable[float],
    decide: Callable[[float], Choice],
    **measured: Any,
) -> list[CurvePoint]:
    """One point for each price, in order of cost; `decide(price)` gives the choice [T] on these outcomes.

    The rest goes to `choice_point`.
    """
    points = [choice_point(outcomes, decide(price), price=price, **measured) for price in prices]
    return sorted(points, key=lambda point: (point.cost, point.bits_per_byte.mean))


def zero_curve(outcomes: TokenOutcomes, zero: ZeroRouter, *, resamples: int = 1000, seed: int = 0) -> list[CurvePoint]:
    """The zero router's vertices measured on `outcomes`; between two vertices it is the straight line."""
    return [
        choice_point(outcomes, fixed(candidate, len(outcomes.unit_T)), resamples=resamples, seed=seed)
        for candidate in zero.candidates_V.tolist()
    ]
