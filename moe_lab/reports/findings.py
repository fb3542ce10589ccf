"""What the results say in a few figures: the answers that a reader looks for first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_lab.evaluation.results import Curve, CurvePoint, Results, Role
from moe_lab.metrics.areas import cost_at_quality as least_cost
from moe_lab.metrics.areas import quality_at_budget
from moe_lab.metrics.bootstrap import Interval
from moe_lab.reports.wording import change, counted, percent, short_count


@dataclass(frozen=True)
class Finding:
    """One figure with a headline in plain words and a line that says what was counted."""

    figure: str
    headline: str
    detail: str


def findings(results: Results) -> list[Finding]:
    """Up to six findings; what was not measured has none."""
    answers = (
        _beside_trunk(results),
        _gap(results),
        _same_quality(results),
        kept_at_half(results),
        _beside_zero(results),
        beside_group_table(results),
    )
    return [finding for finding in answers if finding is not None]


def cost_at_quality(points: list[CurvePoint], bits_per_byte: float) -> float | None:
    """Least cost from which on a curve is as good as that, linear between points; None if its dear end is not.

    The first cost at which it is as good would be picked by the text it is measured on: one lucky price would do.
    """
    cost = least_cost([(point.cost, -point.bits_per_byte.mean) for point in points], -bits_per_byte)
    return cost if np.isfinite(cost) else None


def quality_at_cost(points: list[CurvePoint], cost: float) -> float:
    """Bits per byte at a mean cost: two prices mixed at random meet any cost between theirs, and their mean quality."""
    return float(quality_at_budget([(point.cost, point.bits_per_byte.mean) for point in points], cost))


def kept_at_half(results: Results) -> Finding | None:
    """How much of the first router's dearest gain over the trunk is left at half of its cost."""
    learned = _of_role(results, "learned")
    trunk = next((curve.points[0] for curve in _of_role(results, "fixed") if curve.points[0].cost == 0), None)
    if not learned or trunk is None:
        return None
    dearest = max(learned[0].points, key=lambda point: point.cost)
    gain, half = trunk.bits_per_byte.mean - dearest.bits_per_byte.mean, dearest.cost / 2
    points = [trunk, *learned[0].points]
    if gain <= 0:
        return None
    reached = quality_at_cost(points, half)
    return Finding(
        f"{100 * (trunk.bits_per_byte.mean - reached) / gain:.0f}%",
        "of the gain over the trunk is left at half the routed cost",
        f"{learned[0].label}: {reached:.3f} bits per byte at {short_count(half)} multiply-adds per token, "
        f"{dearest.bits_per_byte.mean:.3f} at {short_count(dearest.cost)}",
    )


def _beside_trunk(results: Results) -> Finding | None:
    total = len(results.acceptance)
    if not total:
        return None
    kept = sum(entry.no_worse_than_trunk for entry in results.acceptance)
    worse = [entry.domain for entry in results.acceptance if not entry.no_worse_than_trunk]
    detail = f"worse on {', '.join(worse)}" if worse else "composing the modules harmed no domain"
    return Finding(f"{kept} of {total}", "domains on which the composed model is no worse than the bare trunk", detail)


def _gap(results: Results) -> Finding | None:
    if not results.acceptance:
        return None
    worst = max(results.acceptance, key=lambda entry: entry.gap_to_best_percent)
    return Finding(
        percent(worst.gap_to_best_percent),
        f"bits per byte on {worst.domain} beside the best single module there",
        f"of all domains this is the worst for the composed model; the module is {worst.best_single.name}, used for "
        "every token",
    )


def _same_quality(results: Results) -> Finding | None:
    fixed, learned = _of_role(results, "fixed"), _of_role(results, "learned")
    if not fixed or not learned:
        return None
    single = min(fixed, key=lambda curve: (curve.points[0].bits_per_byte.mean, curve.points[0].cost))
    best = single.points[0]
    if best.cost == 0:
        return None
    reached = cost_at_quality(learned[0].points, best.bits_per_byte.mean)
    if reached is None:
        wanted = f"at no cost does the composed model stay as good as {single.label} from there on"
        return Finding("not reached", wanted, "the best single module used for every token, all domains together")
    return Finding(
        percent(100 * (reached / best.cost - 1), 0),
        f"work in the routed layers to be as good as {single.label} used for every token",
        f"the best single module, all domains together: {short_count(reached)} against {short_count(best.cost)} "
        "multiply-adds per token",
    )


def _beside_zero(results: Results) -> Finding | None:
    for curve in _of_role(results, "learned"):
        differences = [p.difference_to_zero for p in curve.points if p.difference_to_zero is not None]
        if differences:
            below = sum(difference.high < 0 for difference in differences)
            return Finding(
                f"{below} of {len(differences)}",
                "prices at which routing beats random mixing",
                f"whole interval of {curve.label} minus the zero router below zero",
            )
    return None


def beside_group_table(results: Results) -> Finding | None:
    """At how many of the group table's own costs the first router is below it, and how many above.

    The table is told the domain of each text. So the headline is the router's that is told as well, if it can be, and
    the detail says what it does when it has to find out.
    """
    points = [point for curve in _of_role(results, "group_table") for point in curve.points]
    told = [point.told_difference for point in points if point.told_difference is not None]
    untold = [point.routed_difference for point in points if point.routed_difference is not None]
    first = told or untold
    if not first:
        return None
    detail = f"whole interval of router minus group table below zero; above zero at {_above(first)}"
    if told and untold:
        detail += f"; not told the domain: below at {_below(untold)} of {len(untold)}, above at {_above(untold)}"
    knowing = ", both told the domain" if told else ""
    headline = f"costs of the group table at which routing beats it{knowing}"
    return Finding(f"{_below(first)} of {len(first)}", headline, detail)


def _below(differences: list[Interval]) -> int:
    return sum(difference.high < 0 for difference in differences)


def _above(differences: list[Interval]) -> int:
    return sum(difference.low > 0 for difference in differences)


def budget_lines(results: Results) -> list[str]:
    """What the router reaches at each budget, beside random mixing of fixed candidates at the same cost."""
    return [
        f"at {share:.0%} of the dearest candidate's cost: {point.bits_per_byte.mean:.3f} bits per byte, "
        f"{change(difference.mean)} beside the zero router (95%: {change(difference.low)} to {change(difference.high)})"
        for share, point in ((budget.share, budget.point) for budget in results.budgets)
        if (difference := point.difference_to_zero) is not None
    ]


def _of_role(results: Results, role: Role) -> list[Curve]:
    return [curve for curve in results.curves if curve.role == role]


def describe_size(results: Results) -> str:
    """How much was evaluated, in one line."""
    rows = sum(domain.rows for domain in results.domains)
    total = sum(domain.bytes for domain in results.domains)
    parts = (
        counted(len(results.domains), "domain"),
        counted(len(results.modules), "module"),
        counted(rows, "row"),
        counted(total, "byte"),
    )
    return " · ".join(parts)
