"""A question router's metrics with their intervals: areas, shares, the band over the zero router, paired differences.

What a router gains is that of its own prices, mixed straight between two that are nearest in cost: a policy that was
fixed before any outcome was seen, the same in every resample. AIQ is beside it as its paper defines it; its hull picks
prices by the outcomes that it counts, so on noise it is a gain.

Legend: N items, C candidates, P prices, U units, R roles.
"""

from __future__ import annotations

import numpy as np

from moe_lab.metrics.areas import CostRange, Picked, aiq, cost_at_quality, deferral_area, quality_at_budget
from moe_lab.metrics.bootstrap import Interval, statistic_intervals
from moe_lab.metrics.choices import Choice
from moe_lab.metrics.deferral import apgr, cpt, deferral_curve
from moe_lab.metrics.published import aiq_routerbench_code, area_cascade_routing_code
from moe_lab.questions.evaluate import OutOfFold, plain
from moe_lab.questions.folds import number_keys
from moe_lab.questions.results import AREA, Band, CurveRole, Figure
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.table import ItemTable

Swept = dict[CurveRole, tuple[list[float], list[Choice]]]
"""Of every router its prices, and each one's choice."""

_BAND_COSTS = 21
_BESIDE = 9
_CPT = (0.5, 0.8)


def measure_figures(
    scored: OutOfFold, swept: Swept, points: dict[CurveRole, np.ndarray], spec: QuestionRouterSettings
) -> list[Figure]:
    """Every metric of every router, the main ones with paired intervals."""
    table = scored.table
    over = _range(scored, np.ones(len(table)))
    figures = []
    for role, curve in points.items():
        figures += [
            Figure(metric="AIQ (RouterBench code)", role=role, value=plain(_routerbench(curve, over))),
            Figure(metric="cost at the dearest's quality", role=role, value=plain(_iso_cost(curve, table))),
        ]
        if over.high > over.low:
            value = area_cascade_routing_code(curve, _alone(table))
            figures.append(Figure(metric="AUC (cascade-routing code)", role=role, value=value))
    figures += _pair_figures(scored, swept)
    return figures + _intervals(scored, swept, spec)


def _routerbench(curve: np.ndarray, over: CostRange) -> float:
    # Its code takes the greatest cost of all routers that are compared: the dearest candidate's.
    return aiq_routerbench_code(curve, over.high) if over.high > 0 else float("nan")


def _iso_cost(curve: np.ndarray, table: ItemTable) -> float:
    return cost_at_quality(curve, float(table.quality_NC[:, int(np.argmax(table.cost_C))].mean()))


def _alone(table: ItemTable) -> np.ndarray:
    return np.stack([table.cost_C, table.quality_NC.mean(axis=0)], axis=1)


def _pair(scored: OutOfFold) -> tuple[int, int] | None:
    """(cheap, dear) where there are two candidates, both from the start, and the dear one is the better."""
    table = scored.table
    if scored.newcomers or len(table.names) != 2 or np.ptp(table.cost_C) == 0:
        return None
    cheap, dear = int(np.argmin(table.cost_C)), int(np.argmax(table.cost_C))
    mean_C = table.quality_NC.mean(axis=0)
    return (cheap, dear) if mean_C[dear] > mean_C[cheap] else None


def _pair_figures(scored: OutOfFold, swept: Swept) -> list[Figure]:
    """CPT of two candidates, for each router."""
    pair = _pair(scored)
    if pair is None:
        return []
    figures = []
    for role in swept:
        weak, strong = scored.table.quality_NC[:, pair[0]], scored.table.quality_NC[:, pair[1]]
        curve = deferral_curve(_gain(scored, role, pair), weak, strong)
        figures += [Figure(metric=f"CPT({share:.0%})", role=role, value=plain(cpt(curve, share))) for share in _CPT]
    return figures


def _gain(scored: OutOfFold, role: CurveRole, pair: tuple[int, int]) -> np.ndarray:
    predicted = scored.predicted(role)
    return predicted[:, pair[1]] - predicted[:, pair[0]]


def _intervals(scored: OutOfFold, swept: Swept, spec: QuestionRouterSettings) -> list[Figure]:
    """The areas of every router, and this router's differences to the others, paired."""
    table, pair, roles = scored.table, _pair(scored), list(swept)
    unit_N = number_keys(table.keys)  # items that look the same are drawn together
    picked = {role: _picked(choices, table) for role, (_, choices) in swept.items()}
    metrics = [AREA, "AIQ", *(["APGR"] if pair is not None else [])]

    def areas(weight_U: np.ndarray) -> np.ndarray:
        weight_N = weight_U[unit_N]
        over = _range(scored, weight_N)
        points = [picked[role].points(weight_N) for role in roles]
        of_metrics = [[deferral_area(curve, over) for curve in points], [aiq(curve, over) for curve in points]]
        if pair is not None:
            of_metrics.append(_apgr(scored, roles, pair, weight_N))
        return np.concatenate([[*values, *(values[0] - value for value in values[1:])] for values in of_metrics])

    intervals = statistic_intervals(areas, int(unit_N.max()) + 1, resamples=spec.resamples, seed=spec.seed)
    named = [
        (name, role)
        for metric in metrics
        for name, of in ((metric, roles), (f"{metric} gained over", roles[1:]))
        for role in of
    ]
    return [
        Figure(metric=name, role=role, value=interval.mean, interval=interval)
        for (name, role), interval in zip(named, intervals, strict=True)
    ]


def _apgr(scored: OutOfFold, roles: list[CurveRole], pair: tuple[int, int], weight_N: np.ndarray) -> list[float]:
    weak, strong = scored.table.quality_NC[:, pair[0]], scored.table.quality_NC[:, pair[1]]
    if np.isclose((weight_N * (strong - weak)).sum(), 0):
        return [float("nan")] * len(roles)
    return [apgr(deferral_curve(_gain(scored, role, pair), weak, strong, weight_N)) for role in roles]


def _picked(choices: list[Choice], table: ItemTable) -> Picked:
    return Picked.of(choices, table.quality_NC, table.cost_NC)


def _range(scored: OutOfFold, weight_N: np.ndarray) -> CostRange:
    """From the cheapest to the dearest candidate of the whole table, which need not be those of a resample.

    Every curve can send all items to the table's cheapest one, so every curve has a point where the range begins. The
    router before others joined can do so with the cheapest that was there, so a cheaper newcomer moves no beginning.
    """
    cost_C = scored.table.cost_C
    mean_C = weight_N @ scored.table.cost_NC / weight_N.sum()
    low = max(mean_C[cost_C.argmin()], mean_C[cost_C[: scored.known].argmin()])
    return CostRange(float(low), float(mean_C[cost_C.argmax()]))


def measure_band(scored: OutOfFold, swept: Swept, spec: QuestionRouterSettings) -> Band:
    """Quality at budgets between the cheapest and the dearest candidate, and the gain over the zero router."""
    table = scored.table
    unit_N = number_keys(table.keys)  # items that look the same are drawn together
    routed, zero = _picked(swept["routed"][1], table), _picked(swept["zero_router"][1], table)
    share = np.linspace(0, 1, _BAND_COSTS)

    def heights(weight_U: np.ndarray) -> np.ndarray:
        weight_N = weight_U[unit_N]
        over = _range(scored, weight_N)
        budgets = over.low + share * (over.high - over.low)
        at = [quality_at_budget(picked.points(weight_N), budgets) for picked in (routed, zero)]
        return np.concatenate([at[0], at[0] - at[1]])

    intervals = statistic_intervals(heights, int(unit_N.max()) + 1, resamples=spec.resamples, seed=spec.seed)
    over = _range(scored, np.ones(len(table)))
    return Band(
        cost=tuple((over.low + share * (over.high - over.low)).tolist()),
        quality=tuple(intervals[:_BAND_COSTS]),
        difference_to_zero=tuple(intervals[_BAND_COSTS:]),
    )


def beside_another(
    scored: OutOfFold, swept: Swept, spec: QuestionRouterSettings, role: CurveRole
) -> dict[float, Interval]:
    """By price of another router: this router's quality at the other's own cost minus the other's, paired."""
    table = scored.table
    unit_N = number_keys(table.keys)
    prices, choices = swept[role]
    shown = np.unique(np.linspace(0, len(prices) - 1, min(_BESIDE, len(prices))).round().astype(int))
    routed, beside = _picked(swept["routed"][1], table), _picked([choices[p] for p in shown], table)

    def differences(weight_U: np.ndarray) -> np.ndarray:
        points, at = (picked.points(weight_U[unit_N]) for picked in (routed, beside))
        return quality_at_budget(points, at[:, 0]) - at[:, 1]

    intervals = statistic_intervals(differences, int(unit_N.max()) + 1, resamples=spec.resamples, seed=spec.seed)
    return {prices[p]: interval for p, interval in zip(shown, intervals, strict=True)}
