"""What a question router's results claim, in sentences that the page and the command share."""

from __future__ import annotations

from moe_lab.metrics.bootstrap import Interval
from moe_lab.questions.results import AREA, CurveRole, Disagreement, RouteResults
from moe_lab.reports.route_cells import number, span

_BASELINES: dict[CurveRole, str] = {
    "group_table": "the group table",
    "zero_router": "the zero router",
    "before": "itself before joining",
}
_WHY = {
    "AIQ": "AIQ's hull picks prices by the outcomes that it counts",
    "APGR": "APGR counts shares of questions instead of costs, those included that no price above zero sends on",
}


def claimed_gains(results: RouteResults) -> dict[CurveRole, tuple[str, Interval]]:
    """By baseline a sentence and the gain at equal cost; a group table that tells nothing is no baseline."""
    return {
        role: (_describe_gain(gain, label), gain)
        for role, label in _BASELINES.items()
        if (gain := results.gained(role)) is not None and (role != "group_table" or results.groups_tell)
    }


def describe_doubts(results: RouteResults) -> list[str]:
    """Where a published metric says otherwise than the curve, and where a baseline is none."""
    return [*map(_disagreement, results.disagreements), *_silent_groups(results)]


def _describe_gain(gain: Interval, over: str) -> str:
    """A gain, a loss or neither, as the whole interval says."""
    if gain.low > 0:
        return f"quality gained over {over} at equal cost"
    if gain.high < 0:
        return f"quality lost to {over} at equal cost"
    return f"quality beside {over} at equal cost: neither gain nor loss is shown"


def _disagreement(found: Disagreement) -> str:
    published, curve = found.by_metric, found.by_curve
    return (
        f"{found.metric} and the curve disagree: beside {_BASELINES[found.role]} {found.metric} changes by "
        f"{number(published.mean, sign=True)} ({span(published)}), the quality at equal cost by "
        f"{number(curve.mean, sign=True)} ({span(curve)}). Believe the curve: {_WHY[found.metric]}."
    )


def _silent_groups(results: RouteResults) -> list[str]:
    table, zero = results.figure(AREA, "group_table"), results.figure(AREA, "zero_router")
    # Of a group that was left out the table knows nothing; the page says so at the folds.
    if table is None or results.groups_tell or results.by_group:
        return []
    return [
        f"The group table is not above the zero router here (deferral area {number(table)} against {number(zero)}): "
        "the groups do not tell who should answer, and to be above their table is no gain."
    ]
