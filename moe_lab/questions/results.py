"""What an evaluation of a question router found, as JSON that a report is drawn from."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from moe_lab.config.spec import Spec
from moe_lab.metrics.bootstrap import Interval
from moe_lab.questions.router import Mode

AREA = "deferral area"
"""The metric of what is claimed: the mean height of the curve that is drawn, over all costs."""

CurveRole = Literal["routed", "before", "learned", "group_table", "difficulty", "zero_router", "oracle", "fixed"]


_BASELINES: tuple[CurveRole, ...] = ("zero_router", "group_table", "before")


class RoutePoint(Spec):
    """One policy: a price of a router, or a candidate alone.

    `routed_difference`, of some points of the group table and of the router before others joined: this router's
    quality at the point's cost, mixing its two prices nearest in cost, minus the point's. Above zero the router is
    better.
    """

    cost: float
    quality: float
    price: float | None = None
    routed_difference: Interval | None = None


class RouteCurve(Spec):
    """One router's points, from cheap to dear."""

    role: CurveRole
    label: str
    points: tuple[RoutePoint, ...]


class Band(Spec):
    """Quality of the router, and its difference to the zero router, at costs evenly spread; both with intervals."""

    cost: tuple[float, ...]
    quality: tuple[Interval, ...]
    difference_to_zero: tuple[Interval, ...]


class Figure(Spec):
    """One metric of one router, or what this router gains over it; an infinite one, such as a CPT, is null."""

    metric: str
    role: CurveRole
    value: float | None
    interval: Interval | None = None


class GroupRow(Spec):
    """One group: how many items, what each candidate reaches, and where the router sends it at the shown price."""

    group: str
    items: int
    quality: tuple[float, ...]
    share: tuple[float, ...]
    routed_quality: float
    routed_cost: float


class CalibrationBin(Spec):
    """Items whose predicted outcome with a candidate lies close together, and what they scored."""

    candidate: str
    items: int
    predicted: float
    measured: Interval


class FoldVerdict(Spec):
    """What one fold's router was let do, and the areas on held-back items whose differences decided it.

    `group` is the one that was left out, where folds are groups. `gains` are paired: `learned over zero_router`.
    """

    fold: int
    group: str | None = None
    mode: Mode
    validation: dict[str, float]
    gains: dict[str, Interval] = {}


class RouterCost(Spec):
    """What the router itself costs to run."""

    parameters: int
    microseconds_per_question: float
    questions_per_batch: int


class CandidateRow(Spec):
    """One candidate alone."""

    name: str
    size: float | None
    family: str | None
    cost: float
    quality: float


class NewcomerRow(Spec):
    """A candidate that joined: its items, what was said of them, and the share of questions it is given.

    `by_card` is the mean quality predicted before any item was seen, `by_items` with them; the losses are an item's,
    of its card alone and of the other items. `share` is at the shown price, `greatest_share` at the price that gives
    it most.
    """

    name: str
    items: int
    measured: float
    by_card: float
    by_items: float
    loss_by_card: float
    loss_by_other_items: float
    share: Interval
    greatest_share: float
    greatest_share_price: float


class Disagreement(Spec):
    """A published metric that says another thing of this router beside a baseline than the curve that is drawn."""

    metric: str
    role: CurveRole
    by_metric: Interval
    by_curve: Interval


class RouteResults(Spec):
    """Everything a report shows."""

    model_config = ConfigDict(allow_inf_nan=False)

    format: Literal[2] = 2  # 1 had gains of the concave hull
    name: str
    created: str
    seconds: float
    table: str
    table_digest: str
    table_licence: str = ""
    licence: str = ""  # of the router
    items: int
    folds: int
    head: str
    outcome: Literal["score", "loss"]
    cost_unit: str
    outcome_unit: str = ""
    warnings: tuple[str, ...]
    candidates: tuple[CandidateRow, ...]
    mode: Mode
    verdicts: tuple[FoldVerdict, ...]
    figures: tuple[Figure, ...]
    curves: tuple[RouteCurve, ...]
    band: Band
    groups: tuple[GroupRow, ...]
    shown_price: float
    calibration: tuple[CalibrationBin, ...]
    router_cost: RouterCost
    oracle_free_cost: float
    newcomers: tuple[NewcomerRow, ...] = ()
    left_out: int = 0  # questions that the newcomers joined on, each predicted with itself left out

    @property
    def beside_group_table(self) -> tuple[int, int, int]:
        """At how many of the group table's own costs the router's whole interval is above it, below it; of how many."""
        return self.beside("group_table")

    def beside(self, role: CurveRole) -> tuple[int, int, int]:
        """The same for another curve's own costs."""
        points = [point for curve in self.curves if curve.role == role for point in curve.points]
        differences = [point.routed_difference for point in points if point.routed_difference is not None]
        return sum(d.low > 0 for d in differences), sum(d.high < 0 for d in differences), len(differences)

    @property
    def by_group(self) -> bool:
        """Whether each fold is a whole group that its router never saw."""
        return bool(self.verdicts) and self.verdicts[0].group is not None

    def gained(self, role: CurveRole, metric: str = AREA) -> Interval | None:
        """What this router gains over another one, as a mean over all costs; None where it was not measured."""
        named = f"{metric} gained over"
        return next((f.interval for f in self.figures if f.metric == named and f.role == role), None)

    @property
    def groups_tell(self) -> bool:
        """Whether the group table is above the zero router at all; where it is not, to be above it is no gain."""
        table, zero = self.figure(AREA, "group_table"), self.figure(AREA, "zero_router")
        # The same choices summed in another order may differ by rounding.
        return table is not None and zero is not None and table > zero + 1e-9

    @property
    def disagreements(self) -> tuple[Disagreement, ...]:
        """Where AIQ or APGR calls a gain, a loss or neither what the curve calls another of the three."""
        disagreements = []
        for metric in ("AIQ", "APGR"):
            for role in _BASELINES:
                by_metric, by_curve = self.gained(role, metric), self.gained(role)
                if by_metric is not None and by_curve is not None and _sign(by_metric) != _sign(by_curve):
                    disagreements.append(Disagreement(metric=metric, role=role, by_metric=by_metric, by_curve=by_curve))
        return tuple(disagreements)

    def figure(self, metric: str, role: CurveRole = "routed") -> float | None:
        """The value of one metric; None where it was not measured or is infinite."""
        return next((f.value for f in self.figures if f.metric == metric and f.role == role), None)


def _sign(gain: Interval) -> int:
    """1 where the whole interval is above zero, -1 where it is below, 0 where it says neither."""
    return int(gain.low > 0) - int(gain.high < 0)
