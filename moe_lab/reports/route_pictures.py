"""The figures of a question router's report: quality against cost with its band, and calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.questions.results import CurveRole, RouteCurve, RouteResults
from moe_lab.reports.canvas import PLACEHOLDERS, canvas_style, new_figure, svg_text
from moe_lab.reports.colours import LineStyle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES: dict[CurveRole, LineStyle] = {
    "routed": LineStyle("learned", "trained on the other folds, with its 95% interval", weight=2.2),
    "before": LineStyle("third", "the same router without the newcomer", dash=(4, 2)),
    "group_table": LineStyle("group", "best candidate of each group, as the other folds say", dash=(5, 1.5)),
    "difficulty": LineStyle("second", "knows only whether the cheapest candidate will fail", dash=(1.5, 1.5)),
    "zero_router": LineStyle("zero", "random mix of candidates, needs no router", dash=(6, 3)),
    "oracle": LineStyle("oracle", "sees the outcome of every candidate; no router can", dash=(1.5, 2.5)),
    "fixed": LineStyle("zero", "one candidate for every question, by name", marker="o", hollow=True),
}
_COLOURS = ("learned", "group", "uniform", "second", "third", "module-4", "module-3", "module-5")
_MOST_CALIBRATED = 8


def quality_svg(results: RouteResults) -> str:
    """Quality against cost, above the gain over the zero router at equal cost."""
    with canvas_style(PLACEHOLDERS):
        figure = new_figure(10.4, 6.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.15])
        figure.subplots_adjust(left=0.058, right=0.985, top=0.955, bottom=0.08, hspace=0.19)
        dearest = max(candidate.cost for candidate in results.candidates)
        for curve in results.curves:
            _draw_curve(upper, curve, dearest)
        upper.set_ylim(*quality_limits(results))
        band, colour = results.band, PLACEHOLDERS["learned"]
        for axes, intervals in ((upper, band.quality), (lower, band.difference_to_zero)):
            low, high = [i.low for i in intervals], [i.high for i in intervals]
            axes.fill_between(band.cost, low, high, color=colour, alpha=0.16, lw=0, zorder=2)
        lower.plot(band.cost, [i.mean for i in band.difference_to_zero], color=colour, lw=2.2)
        lower.axhline(0, color=PLACEHOLDERS["zero"], lw=1.4, dashes=(6, 3), zorder=2)
        upper.set_title(f"mean {_measure(results)}, higher is better", loc="left")
        lower.set_title("gain over the zero router at the same cost, above zero is better", loc="left")
        lower.set_xlabel(f"mean cost of a question ({results.cost_unit})")
        return svg_text(figure, "quality")


def calibration_svg(results: RouteResults) -> str:
    """What was predicted against what was measured, ten equally large bins for each candidate."""
    with canvas_style(PLACEHOLDERS):
        figure = new_figure(10.4, 4.4)
        axes = figure.subplots()
        figure.subplots_adjust(left=0.058, right=0.985, top=0.93, bottom=0.125)
        for candidate, colour in calibration_colours(results):
            bins = [bin_ for bin_ in results.calibration if bin_.candidate == candidate]
            at = [bin_.predicted for bin_ in bins]
            low, high = [bin_.measured.low for bin_ in bins], [bin_.measured.high for bin_ in bins]
            axes.vlines(at, low, high, color=PLACEHOLDERS[colour], lw=1.1, alpha=0.6)
            axes.plot(at, [bin_.measured.mean for bin_ in bins], "o-", color=PLACEHOLDERS[colour], lw=1.3, ms=4.5)
        ends = [value for bin_ in results.calibration for value in (bin_.predicted, bin_.measured.mean)]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=PLACEHOLDERS["zero"], lw=1.4, dashes=(6, 3))
        axes.set_title(f"measured {_measure(results)}", loc="left")
        axes.set_xlabel(f"predicted {_measure(results)}")
        return svg_text(figure, "calibration")


def calibration_colours(results: RouteResults) -> list[tuple[str, str]]:
    """The candidates that are drawn, cheapest and dearest among them, and the colour of each."""
    by_cost = sorted(results.candidates, key=lambda candidate: candidate.cost)
    shown = by_cost if len(by_cost) <= _MOST_CALIBRATED else [*by_cost[: _MOST_CALIBRATED - 1], by_cost[-1]]
    return [(candidate.name, _COLOURS[nth]) for nth, candidate in enumerate(shown)]


def _measure(results: RouteResults) -> str:
    unit = f" in {results.outcome_unit}" if results.outcome_unit else ""
    return f"{results.outcome}{unit}" + ("" if results.outcome == "score" else ", with its sign turned")


def _draw_curve(axes: Axes, curve: RouteCurve, dearest: float) -> None:
    style = STYLES[curve.role]
    colour = PLACEHOLDERS[style.colour]
    cost, quality = [p.cost for p in curve.points], [p.quality for p in curve.points]
    if curve.role == "fixed":
        axes.plot(cost, quality, "o", ms=5.5, mfc=PLACEHOLDERS["page"], mec=colour, mew=1.4, zorder=5)
        # At the right edge a name would be cut off, so it stands on the other side of its dot.
        beside, anchor = ((-7, -3), "right") if cost[0] > 0.8 * dearest else ((7, -3), "left")
        axes.annotate(
            curve.label,
            (cost[0], quality[0]),
            beside,
            textcoords="offset points",
            va="top",
            ha=anchor,
            fontsize=9,
            zorder=6,
        )
        return
    (line,) = axes.plot(cost, quality, color=colour, lw=style.weight, zorder=4 if curve.role == "routed" else 3)
    if style.dash:
        line.set_dashes(style.dash)


def quality_limits(results: RouteResults) -> tuple[float, float]:
    """Least and greatest quality to show: the oracle lies far above and would flatten all the rest."""
    others = [p.quality for curve in results.curves if curve.role != "oracle" for p in curve.points]
    others += [bound for interval in results.band.quality for bound in (interval.low, interval.high)]
    room = (max(others) - min(others)) or 1.0
    return min(others) - 0.08 * room, max(others) + 0.12 * room
