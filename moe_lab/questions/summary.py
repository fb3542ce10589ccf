"""From out-of-fold predictions to all that a report shows: figures, curves, groups, calibration.

Legend: N items, C candidates.
"""

from __future__ import annotations

import datetime

import numpy as np

from moe_lab.metrics.areas import policy_points
from moe_lab.metrics.bootstrap import Interval, ratio_interval
from moe_lab.metrics.choices import choose, fixed, oracle_point
from moe_lab.questions.evaluate import OutOfFold
from moe_lab.questions.figures import Swept, beside_another, measure_band, measure_figures
from moe_lab.questions.results import (
    CalibrationBin,
    CandidateRow,
    CurveRole,
    GroupRow,
    RouteCurve,
    RoutePoint,
    RouterCost,
    RouteResults,
)
from moe_lab.questions.router import Mode, relative_cost
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.table import ItemTable

ROLES: dict[CurveRole, str] = {
    "routed": "this router",
    "group_table": "group table",
    "difficulty": "difficulty alone",
    "zero_router": "zero router",
    "oracle": "oracle",
}
_AT_OWN_COSTS = ("group_table", "before")
_BINS = 10


def summarise(
    scored: OutOfFold,
    spec: QuestionRouterSettings,
    *,
    name: str,
    mode: Mode,
    router_cost: RouterCost,
    warnings: list[str],
    seconds: float,
) -> RouteResults:
    """All that a report shows, from the predictions of items that were not seen."""
    table = scored.table
    swept = {role: scored.choices(role, spec.prices) for role in _roles(scored)}
    points = {role: policy_points(choices, table.quality_NC, table.cost_NC) for role, (_, choices) in swept.items()}
    price = _middle_price(points["routed"], swept["routed"][0], table)
    return RouteResults(
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        table=table.name,
        table_digest=table.digest,
        table_licence=table.licence,
        items=len(table),
        folds=len(scored.verdicts),
        head=spec.head,
        outcome=table.outcome,
        cost_unit=table.cost_unit,
        outcome_unit=table.outcome_unit,
        warnings=tuple(warnings),
        candidates=_candidates(table),
        mode=mode,
        verdicts=scored.verdicts,
        figures=tuple(measure_figures(scored, swept, points, spec)),
        curves=tuple(
            _curves(
                swept, points, scored, {r: beside_another(scored, swept, spec, r) for r in swept if r in _AT_OWN_COSTS}
            )
        ),
        band=measure_band(scored, swept, spec),
        groups=tuple(_groups(scored, price)),
        shown_price=price,
        calibration=tuple(_calibration(scored)),
        router_cost=router_cost,
        oracle_free_cost=oracle_point(table.quality_NC, table.cost_NC, unsolved="free")[0],
    )


def _roles(scored: OutOfFold) -> dict[CurveRole, str]:
    """The curves of a report and their labels; where candidates joined, also the router without them."""
    roles = {role: label for role, label in ROLES.items() if role != "group_table" or scored.table.has_groups}
    if not scored.newcomers:
        return roles
    names = " and ".join(scored.table.names[scored.known :])
    return {"routed": ROLES["routed"], "before": f"before {names} joined", **roles}


def _curves(
    swept: Swept, points: dict[CurveRole, np.ndarray], scored: OutOfFold, beside: dict[CurveRole, dict[float, Interval]]
) -> list[RouteCurve]:
    curves, table = [], scored.table
    for role, label in _roles(scored).items():
        rows = sorted(
            (
                RoutePoint(
                    cost=cost,
                    quality=quality,
                    price=price,
                    routed_difference=beside.get(role, {}).get(price),
                )
                for (cost, quality), price in zip(points[role].tolist(), swept[role][0], strict=True)
            ),
            key=lambda point: (point.cost, point.quality),
        )
        curves.append(RouteCurve(role=role, label=label, points=tuple(rows)))
    for c, name in enumerate(table.names):
        choice = fixed(c, len(table))
        cost, quality = policy_points([choice], table.quality_NC, table.cost_NC)[0].tolist()
        curves.append(RouteCurve(role="fixed", label=name, points=(RoutePoint(cost=cost, quality=quality),)))
    return curves


def _candidates(table: ItemTable) -> tuple[CandidateRow, ...]:
    means = table.quality_NC.mean(axis=0)
    return tuple(
        CandidateRow(name=c.name, size=c.size, family=c.family, cost=float(cost), quality=float(mean))
        for c, cost, mean in zip(table.candidates, table.cost_C, means, strict=True)
    )


def _middle_price(points: np.ndarray, prices: list[float], table: ItemTable) -> float:
    """The price whose mean cost is nearest to the middle between the cheapest and the dearest candidate."""
    middle = (table.cost_C.min() + table.cost_C.max()) / 2
    return float(prices[int(np.argmin(np.abs(points[:, 0] - middle)))])


def _groups(scored: OutOfFold, price: float) -> list[GroupRow]:
    table = scored.table
    choice = choose(-scored.routed_NC, relative_cost(table.cost_C), price)
    rows = []
    for g, name in enumerate(table.groups):
        inside = np.flatnonzero(table.group_N == g)
        if len(inside):
            chosen = choice[inside]
            rows.append(
                GroupRow(
                    group=name,
                    items=len(inside),
                    quality=tuple(table.quality_NC[inside].mean(axis=0).tolist()),
                    share=tuple((np.bincount(chosen, minlength=len(table.names)) / len(inside)).tolist()),
                    routed_quality=float(table.quality_NC[inside, chosen].mean()),
                    routed_cost=float(table.cost_NC[inside, chosen].mean()),
                )
            )
    return sorted(rows, key=lambda row: -row.items)


def _calibration(scored: OutOfFold) -> list[CalibrationBin]:
    """Each candidate's items in equally large bins of what was predicted by the heads."""
    bins = []
    for c, name in enumerate(scored.table.names):
        order = np.argsort(scored.learned_NC[:, c], kind="stable")
        for members in np.array_split(order, min(_BINS, len(order))):
            measured: Interval = ratio_interval(
                scored.table.quality_NC[members, c], np.ones(len(members)), resamples=200
            )
            predicted = float(scored.learned_NC[members, c].mean())
            bins.append(CalibrationBin(candidate=name, items=len(members), predicted=predicted, measured=measured))
    return bins
