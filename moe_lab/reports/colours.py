"""Which colour, dash and marker means what, the same in the report's HTML, in its figures and in the PNG.

The hues are close to those of Okabe and Ito, which colour-blind readers can tell apart, and every curve
also has its own dash or marker. Hue means module, strength means width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moe_lab.evaluation.results import Curve, Results, Role

Palette = Mapping[str, str]

LIGHT: Palette = {
    "page": "#ffffff",
    "panel": "#f6f7f9",
    "ink": "#1a1d21",
    "muted": "#59616b",
    "faint": "#8b939d",
    "rule": "#dfe3e8",
    "learned": "#0063b0",
    "second": "#8b4a9c",
    "third": "#8a6d00",
    "group": "#c4560a",
    "uniform": "#0a8263",
    "oracle": "#1a1d21",
    "zero": "#68717c",
    "random": "#a8839a",
    "better": "#2b83c6",
    "worse": "#d9822b",
    "module-0": "#2b83c6",
    "module-1": "#d98a1a",
    "module-2": "#12a07c",
    "module-3": "#c06fa3",
    "module-4": "#d4562a",
    "module-5": "#7a6fd0",
    "module-6": "#a39a1c",
    "module-7": "#6f7b88",
}
DARK: Palette = {
    "page": "#121519",
    "panel": "#1a1e24",
    "ink": "#e7eaee",
    "muted": "#a4adb8",
    "faint": "#77818d",
    "rule": "#2c323a",
    "learned": "#62b2f2",
    "second": "#cf9be2",
    "third": "#dfc15a",
    "group": "#f59b5c",
    "uniform": "#45cda6",
    "oracle": "#e7eaee",
    "zero": "#9aa4b0",
    "random": "#c59fb6",
    "better": "#3f94d8",
    "worse": "#cf7f33",
    "module-0": "#3f94d8",
    "module-1": "#d9912f",
    "module-2": "#23ab87",
    "module-3": "#c97fb0",
    "module-4": "#dc6a42",
    "module-5": "#8c82dc",
    "module-6": "#aaa234",
    "module-7": "#8390a0",
}
MODULE_HUES = 8
# How much of a hue lies on the page for the narrowest and the widest module. On a dark page a weak tint is not seen,
# and on a strong one light text is not read, so the ends lie closer together there.
LIGHT_STRENGTHS = (0.22, 0.62)
DARK_STRENGTHS = (0.32, 0.55)
TINT_STRENGTH = 0.62  # of the matrix's strongest cell


@dataclass(frozen=True)
class LineStyle:
    """How a curve is drawn, and what it is in plain words. `dash` is in points; `hollow` is dots only."""

    colour: str
    words: str
    dash: tuple[float, ...] = ()
    marker: str = ""
    weight: float = 1.5
    hollow: bool = False


_ROLES: dict[Role, LineStyle] = {
    "learned": LineStyle("learned", "learned router, with its 95% interval", marker="o", weight=2.2),
    "told": LineStyle("learned", "the same router, told the domain of each text", dash=(4, 2), marker="P"),
    "zero_router": LineStyle("zero", "random mix of fixed choices", dash=(6, 3)),
    "group_table": LineStyle("group", "best fixed choice for each domain, told the domain", marker="s"),
    "uniform_width": LineStyle("uniform", "the same width for every token", marker="^"),
    "oracle": LineStyle("oracle", "sees the outcome of every choice; no router can", dash=(1.5, 2.5)),
    "random": LineStyle("random", "random choice for every token", dash=(1, 4)),
    "fixed": LineStyle("zero", "one candidate for every token, named where there is room", marker="o", hollow=True),
}
_LEARNED_COLOURS = ("learned", "second", "third")
_LEARNED_MARKERS = ("o", "D", "v")


def line_styles(results: Results) -> list[tuple[Curve, LineStyle]]:
    """Every curve with its style, in the order of a legend; further learned routers get their own colours."""
    order = list(_ROLES)
    curves = sorted(results.curves, key=lambda curve: order.index(curve.role))
    learned = [curve.label for curve in curves if curve.role == "learned"]
    styled = []
    for curve in curves:
        style = _ROLES[curve.role]
        if curve.role == "learned":
            nth = learned.index(curve.label) % len(_LEARNED_COLOURS)
            style = LineStyle(_LEARNED_COLOURS[nth], style.words, marker=_LEARNED_MARKERS[nth], weight=style.weight)
        styled.append((curve, style))
    return styled


class Scale:
    """Hue for each module and strength for each width that occur in the results."""

    def __init__(self, results: Results) -> None:
        named = [candidate.module for candidate in results.candidates]
        named += [share.module for share in results.routing]
        named += [module for sample in results.samples for module in sample.module]
        self.modules = list(dict.fromkeys(module for module in named if module is not None))
        widths = {candidate.width for candidate in results.candidates}
        widths |= {share.width for share in results.routing}
        widths |= {width for sample in results.samples for width in sample.width}
        self.widths = sorted(widths)

    def hue(self, module: str | None) -> int | None:
        """Index of the module's hue; None for the trunk alone."""
        return None if module is None else self.modules.index(module) % MODULE_HUES

    def strength(self, width: int, ends: tuple[float, float] = LIGHT_STRENGTHS) -> float:
        """0 for width 0, then evenly by rank from the weak end to the strong one."""
        wide = [known for known in self.widths if known > 0]
        if width == 0:
            return 0.0
        weak, strong = ends
        return weak + (strong - weak) * (wide.index(width) / (len(wide) - 1) if len(wide) > 1 else 0.5)


def short_name(name: str) -> str:
    """A module or candidate without its owner."""
    return name.rsplit("/", 1)[-1]
