"""A figure's frame and its legend, in HTML so that they follow the page's fonts and colours."""

from __future__ import annotations

from moe_lab.reports.colours import LineStyle
from moe_lab.reports.markup import Markup, element

_SHAPES = {
    "s": "11.8,2.8 18.2,2.8 18.2,9.2 11.8,9.2",
    "^": "15,2 19,9.4 11,9.4",
    "v": "15,10 19,2.6 11,2.6",
    "D": "15,1.6 19.4,6 15,10.4 10.6,6",
    "P": "13.5,2 16.5,2 16.5,4.5 19,4.5 19,7.5 16.5,7.5 16.5,10 13.5,10 13.5,7.5 11,7.5 11,4.5 13.5,4.5",
    "X": "12,2 15,4.6 18,2 19,3 16.4,6 19,9 18,10 15,7.4 12,10 11,9 13.6,6 11,3",
}


def drawing(svg: str, description: str) -> Markup:
    """A figure that scrolls sideways where the page is narrow. The SVG is taken as it is."""
    return element("div", Markup(svg), class_="drawing scroll", role="img", aria_label=description, tabindex="0")


def legend(named: list[tuple[str, LineStyle]]) -> Markup:
    """What each line of a figure is: its look, its label, and plain words."""
    items = [
        element("li", _swatch(style), element("b", label) if label else None, " " if label else None, style.words)
        for label, style in named
    ]
    return element("ul", items, class_="legend lines")


def _swatch(style: LineStyle) -> Markup:
    colour = f"var(--{style.colour})"
    line = element(
        "line",
        x1="1",
        x2="29",
        y1="6",
        y2="6",
        stroke=colour,
        stroke_width=f"{style.weight}",
        stroke_dasharray=" ".join(f"{length:g}" for length in style.dash) or None,
    )
    mark = _mark(style.marker, colour, hollow=style.hollow)
    return element("svg", None if style.hollow else line, mark, viewBox="0 0 30 12", aria_hidden="true")


def _mark(marker: str, colour: str, *, hollow: bool) -> Markup | None:
    if marker == "o":
        fill = "var(--page)" if hollow else colour
        return element("circle", cx="15", cy="6", r="3.4", fill=fill, stroke=colour, stroke_width="1.4")
    return element("polygon", points=_SHAPES[marker], fill=colour) if marker in _SHAPES else None
