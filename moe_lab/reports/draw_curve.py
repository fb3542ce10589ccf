"""The quality-cost curve and the difference to the zero router, on matplotlib axes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from moe_lab.evaluation.results import Curve, CurvePoint, Results
from moe_lab.reports.colours import LineStyle, Palette, line_styles, short_name
from moe_lab.reports.wording import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# Where a dot's label may go, in points from the dot, with the text's anchor; tried in this order.
_PLACES = (
    (7, 0, "left", "center"),
    (-7, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (5, 5, "left", "bottom"),
    (5, -5, "left", "top"),
    (-5, 5, "right", "bottom"),
    (-5, -5, "right", "top"),
)
_NOT_RULING = ("fixed", "oracle", "random")


def outside_of_curve(results: Results) -> list[str]:
    """Labels of the lines of which a point lies beyond the axis."""
    low, high, _ = _limits(results)
    lines = [curve for curve in results.curves if curve.role != "fixed"]
    return [curve.label for curve in lines if any(not low <= p.bits_per_byte.mean <= high for p in curve.points)]


def draw_curve(axes: Axes, results: Results, palette: Palette) -> int:
    """Draws all curves, and fixed candidates as labelled dots; returns how many dots lie above it."""
    low, high, reach = _limits(results)
    axes.set_ylim(low, high)
    axes.set_xlim(-0.02 * reach, 1.03 * reach)
    axes.set_title("bits per byte, lower is better", loc="left")
    style_cost_axis(axes)
    dots, obstacles = [], []
    for curve, style in line_styles(results):
        points = _by_cost(curve)
        if curve.role == "fixed":
            dots.append((points[0].cost, points[0].bits_per_byte.mean, short_name(curve.label)))
            continue
        obstacles.append(_draw_line(axes, curve, points, style, palette, reach))
    shown = [dot for dot in dots if dot[1] <= high]
    for cost, quality, _ in shown:
        axes.plot(cost, quality, "o", ms=5.5, mfc=palette["page"], mec=palette["zero"], mew=1.4, zorder=4)
    _label_dots(axes, shown, obstacles, palette)
    return len(dots) - len(shown)


def draw_differences(axes: Axes, results: Results, palette: Palette) -> bool:
    """Draws bits per byte minus the zero router's at equal cost; False where no curve has that difference."""
    drawn = False
    for curve, style in line_styles(results):
        points = [point for point in _by_cost(curve) if point.difference_to_zero is not None]
        if curve.role in ("oracle", "fixed", "zero_router", "random") or not points:
            continue
        cost = np.array([point.cost for point in points])
        bounds = [point.difference_to_zero for point in points if point.difference_to_zero is not None]
        mean, low, high = (np.array([getattr(b, name) for b in bounds]) for name in ("mean", "low", "high"))
        colour = palette[style.colour]
        if curve.role == "learned":
            axes.fill_between(cost, low, high, color=colour, alpha=0.16, lw=0, zorder=3)
        else:
            axes.vlines(cost, low, high, color=colour, lw=1.1, alpha=0.7, zorder=3)
        axes.plot(cost, mean, color=colour, lw=style.weight, marker=style.marker, ms=4.5, zorder=4)
        drawn = True
    axes.axhline(0, color=palette["zero"], lw=1.4, dashes=(6, 3), zorder=2)
    axes.set_title("difference to the zero router at the same cost, below zero is better", loc="left")
    style_cost_axis(axes)
    return drawn


def style_cost_axis(axes: Axes) -> None:
    """Labels the horizontal axis with short counts such as 1.5 M."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def _draw_line(
    axes: Axes, curve: Curve, points: list[CurvePoint], style: LineStyle, palette: Palette, reach: float
) -> list[tuple[float, float]]:
    """Draws one curve and returns its vertices, which labels must keep clear of."""
    cost = [point.cost for point in points]
    mean = [point.bits_per_byte.mean for point in points]
    if curve.role == "zero_router":
        cost, mean = [*cost, 1.03 * reach], [*mean, mean[-1]]
    colour = palette[style.colour]
    front = curve.role == "learned"
    marker = style.marker or ("." if len(cost) == 1 else "")
    if front:
        low = [point.bits_per_byte.low for point in points]
        high = [point.bits_per_byte.high for point in points]
        axes.fill_between(cost, low, high, color=colour, alpha=0.16, lw=0, zorder=3)
    (line,) = axes.plot(cost, mean, color=colour, lw=style.weight, marker=marker, ms=5, zorder=5 if front else 3)
    if style.dash:
        line.set_dashes(style.dash)
    return list(zip(cost, mean, strict=True))


def _by_cost(curve: Curve) -> list[CurvePoint]:
    return sorted(curve.points, key=lambda point: point.cost)


def _limits(results: Results) -> tuple[float, float, float]:
    """Least and greatest bits per byte to show, and the greatest cost.

    A candidate that is bad for most domains can lie far above all curves, as can random choice, and the oracle lies
    far below: what is further away than a third of the curves' span does not rule the axis and may run out of it.
    """
    curves = [curve for curve in results.curves if curve.role not in _NOT_RULING] or results.curves
    shown = [bound for curve in curves for bound in _bounds(curve)]
    room = (max(shown) - min(shown)) / 3
    floor, ceiling = min(shown) - room, max(shown) + room
    others = [curve for curve in results.curves if curve.role in _NOT_RULING]
    shown += [bound for curve in others for bound in _bounds(curve) if floor <= bound <= ceiling]
    margin = 0.05 * (max(shown) - min(shown)) or 0.05
    reach = max(point.cost for curve in results.curves for point in curve.points) or 1.0
    return min(shown) - margin, max(shown) + margin, reach


def _bounds(curve: Curve) -> list[float]:
    intervals = [point.bits_per_byte for point in curve.points]
    if curve.role == "learned":
        return [bound for interval in intervals for bound in (interval.low, interval.high)]
    return [interval.mean for interval in intervals]


def _label_dots(
    axes: Axes,
    dots: list[tuple[float, float, str]],
    lines: list[list[tuple[float, float]]],
    palette: Palette,
) -> None:
    """Puts each label where it touches no line, dot or other label; one without such a place is left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    canvas = FigureCanvasAgg(axes.get_figure(root=True))  # type: ignore[arg-type]
    canvas.draw()
    renderer = canvas.get_renderer()
    along = [np.linspace(a, b, 40) for line in lines for a, b in pairwise(line)]
    avoid = axes.transData.transform(np.concatenate(along)) if along else np.empty((0, 2))
    centres = [axes.transData.transform(dot[:2]) for dot in dots]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in centres]
    inside = axes.get_window_extent(renderer)
    for cost, quality, text in sorted(dots, key=lambda dot: dot[1]):
        for dx, dy, horizontal, vertical in _PLACES:
            label = axes.annotate(
                text,
                (cost, quality),
                (dx, dy),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=9,
                color=palette["muted"],
                zorder=6,
            )
            box = label.get_window_extent(renderer).expanded(1.08, 1.15)
            if _is_free(box, taken, avoid, inside):
                taken.append(box)
                break
            label.remove()


def _is_free(box: Bbox, taken: list[Bbox], avoid: np.ndarray, inside: Bbox) -> bool:
    within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
    hit = (avoid >= [box.x0, box.y0]).all(axis=1) & (avoid <= [box.x1, box.y1]).all(axis=1)
    return within and not hit.any() and not any(box.overlaps(other) for other in taken)
