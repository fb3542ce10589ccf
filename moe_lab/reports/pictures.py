"""The report's figures as SVG text that follows the page's colours, and one PNG picture for a README.

matplotlib is imported here and in the drawing functions only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from moe_lab.errors import LabError
from moe_lab.evaluation.results import ExactMatch, Results
from moe_lab.reports.canvas import PLACEHOLDERS, canvas_style, new_figure, svg_text
from moe_lab.reports.colours import LIGHT, MODULE_HUES, LineStyle, Scale, line_styles
from moe_lab.reports.draw_curve import draw_curve, draw_differences
from moe_lab.reports.draw_matrix import draw_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LINES = 8
PICTURE_PIXELS = (1400, 560)


def curve_svg(results: Results) -> tuple[str, int] | None:
    """Quality against cost above the differences to the zero router, and how many dots lie above it."""
    if not results.curves:
        return None
    with canvas_style(PLACEHOLDERS):
        figure = new_figure(10.4, 6.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.15])
        figure.subplots_adjust(left=0.046, right=0.995, top=0.955, bottom=0.08, hspace=0.19)
        above = draw_curve(upper, results, PLACEHOLDERS)
        upper.tick_params(labelbottom=False)
        if not draw_differences(lower, results, PLACEHOLDERS):
            lower.remove()
            upper.tick_params(labelbottom=True)
            lower = upper
        lower.set_xlabel("multiply-adds per token in the routed layers")
        return svg_text(figure, "curve"), above


def exact_match_svg(results: Results) -> str | None:
    """Share of right answers against the level, one line for each system."""
    if not results.exact_match:
        return None
    with canvas_style(PLACEHOLDERS):
        figure = new_figure(10.4, 3.5)
        axes = figure.subplots()
        figure.subplots_adjust(left=0.046, right=0.995, top=0.915, bottom=0.14)
        levels = sorted({entry.level for entry in results.exact_match})
        series = exact_match_lines(results)
        for number, (entries, style) in enumerate(series):
            nudge = 0.24 * (number / max(len(series) - 1, 1) - 0.5)
            _draw_levels(axes, entries, style, nudge)
        axes.set_xticks(levels)
        axes.set_xlim(levels[0] - 0.4, levels[-1] + 0.4)
        axes.set_ylim(-0.04, 1.04)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        axes.set_xlabel("level of the exercise")
        axes.set_title("share of exercises with the whole answer right", loc="left")
        return svg_text(figure, "exact-match")


def exact_match_lines(results: Results) -> list[tuple[list[ExactMatch], LineStyle]]:
    """Each system's levels with its style: modules by hue, their widths by marker.

    Of many systems only trunk, composition and what concerns the module that gets most answers right.
    """
    series: dict[tuple[str, str | None, int | None], list[ExactMatch]] = {}
    for entry in sorted(results.exact_match, key=lambda entry: entry.level):
        series.setdefault((entry.system, entry.module, entry.width), []).append(entry)
    if len(series) > _MOST_LINES:
        alone = [entries for (system, _, _), entries in series.items() if system == "alone"]
        best = max(alone, key=lambda entries: sum(entry.mean for entry in entries), default=None)
        kept = {None, best[0].module} if best else {None}
        series = {key: entries for key, entries in series.items() if key[1] in kept}
    scale = Scale(results)
    return [(entries, _exact_style(entries[0], scale)) for entries in series.values()]


def write_picture(results: Results, path_png: str | Path) -> Path:
    """Writes curve and matrix side by side as a PNG of 1400 x 560 pixels; one of them alone takes it all."""
    path = Path(path_png)
    panels = [_curve_panel] * bool(results.curves) + [_matrix_panel] * bool(results.matrix)
    if not panels:
        raise LabError(f"{path}: the results hold neither a curve nor a matrix to draw; run the evaluation with one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    wide, high = PICTURE_PIXELS
    with canvas_style(LIGHT):
        figure = new_figure(wide / 100, high / 100)
        figure.patch.set_facecolor(LIGHT["page"])
        axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=[1.12, 1][-len(panels) :])[0]
        left = 0.035 if results.curves else 0.13
        figure.subplots_adjust(left=left, right=0.99, top=0.80, bottom=0.105, wspace=0.25)
        for panel, place in zip(panels, axes, strict=True):
            panel(place, results)
        figure.savefig(path, dpi=100, metadata={"Software": None})
    return path


_LEGEND_ROOM = 0.35  # of the curves' height, below them


def _curve_panel(axes: Axes, results: Results) -> None:
    draw_curve(axes, results, LIGHT)
    axes.set_xlabel("multiply-adds per token in the routed layers")
    low, high = axes.get_ylim()
    axes.set_ylim(low - _LEGEND_ROOM * (high - low), high)
    _legend(axes, results)
    _title(axes, "Quality against compute", "all domains together; further left is cheaper; band: 95% interval")


def _matrix_panel(axes: Axes, results: Results) -> None:
    draw_matrix(axes, results, LIGHT)
    below = "and the change against the trunk: blue is better, orange worse; bold: best of its column"
    _title(axes, "Bits per byte by domain", below)


def _exact_style(entry: ExactMatch, scale: Scale) -> LineStyle:
    if entry.system == "trunk":
        return LineStyle("zero", "trunk alone", dash=(6, 3), marker="o")
    if entry.system == "composed":
        return LineStyle("learned", "composed, with the router", marker="o", weight=2.2)
    hue = scale.hue(entry.module) if entry.module in scale.modules else MODULE_HUES - 1
    if entry.system == "left_out":
        return LineStyle(f"module-{hue}", f"composed without {entry.module}", dash=(2, 2), marker="X")
    rank = sum(width < (entry.width or 0) for width in scale.widths if width > 0)
    return LineStyle(f"module-{hue}", f"{entry.module} at width {entry.width}", marker="v^sDP"[rank % 5])


def _draw_levels(axes: Axes, entries: list[ExactMatch], style: LineStyle, nudge: float) -> None:
    colour = PLACEHOLDERS[style.colour]
    at = [entry.level + nudge for entry in entries]
    axes.vlines(at, [e.low for e in entries], [e.high for e in entries], color=colour, lw=1, alpha=0.55)
    (line,) = axes.plot(at, [e.mean for e in entries], color=colour, lw=style.weight, marker=style.marker, ms=5)
    if style.dash:
        line.set_dashes(style.dash)


def _legend(axes: Axes, results: Results) -> None:
    from matplotlib.lines import Line2D

    plain: dict[str, Callable[[str], str]] = {
        "learned": lambda label: f"{label} (learned router)",
        "fixed": lambda _: "one candidate for every token",
    }
    handles: dict[str, Line2D] = {}
    low, high = axes.get_ylim()
    for curve, style in line_styles(results):
        if not any(low <= point.bits_per_byte.mean <= high for point in curve.points):
            continue  # all of it runs out of the axis
        text = plain.get(curve.role, lambda label: label)(curve.label)
        colour = LIGHT[style.colour]
        line = Line2D([], [], color=colour, lw=style.weight, marker=style.marker, ms=5)
        if style.dash:
            line.set_dashes(style.dash)
        if style.hollow:
            line.set(linestyle="none", markerfacecolor=LIGHT["page"], markeredgewidth=1.4)
        handles.setdefault(text, line)
    legend = axes.legend(handles.values(), handles.keys(), loc="lower left", ncols=2, fontsize=9, handlelength=2.6)
    legend.get_frame().set(facecolor=LIGHT["page"], alpha=0.85, linewidth=0)


def _title(axes: Axes, title: str, below: str) -> None:
    """A title and a line below it, above the axes at the left edge of the whole panel."""
    box = axes.get_position()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.text(box.x0, 0.945, title, fontsize=14, weight="bold", color=LIGHT["ink"], va="center")
    figure.text(box.x0, 0.893, below, fontsize=9.5, color=LIGHT["muted"], va="center")
