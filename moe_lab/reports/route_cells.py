"""Tiles, cells and tables of a question router's report."""

from __future__ import annotations

from moe_lab.metrics.bootstrap import Interval
from moe_lab.reports.markup import Content, Markup, element, join

EN_DASH = "\N{EN DASH}"


def tile(figure: str, headline: str, detail: str | None) -> Markup:
    """A figure in large letters, what it is, and a detail below."""
    return element(
        "div",
        element("strong", figure),
        element("span", headline),
        element("small", detail) if detail else None,
        class_="tile",
    )


def cell(value: float | None, interval: Interval | None, *, sign: bool) -> Content:
    """A figure of a table with its interval below; `never` where it is not reached."""
    if value is None:
        return "never"
    within = span(interval)
    return join(number(value, sign=sign), element("small", within) if within else None)


def number(value: float | None, *, sign: bool = False) -> str:
    """Four decimals, with a real minus."""
    if value is None:
        return EN_DASH
    return (f"{value:+.4f}" if sign else f"{value:.4f}").replace("-", "\N{MINUS SIGN}")


def span(interval: Interval | None) -> str | None:
    """The interval from low to high."""
    if interval is None:
        return None
    return f"{number(interval.low)} to {number(interval.high)}"


def table(heads: tuple[str, ...], rows: list[tuple[Content, ...]], class_: str | None = None) -> Markup:
    """A table that scrolls sideways where it is too wide."""
    head = element("thead", element("tr", [element("th", text, scope="col") for text in heads]))
    body = element("tbody", [element("tr", [element("td", content) for content in row]) for row in rows])
    return element("div", element("table", head, body, class_=class_), class_="scroll", tabindex="0")
