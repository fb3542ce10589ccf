"""The frame of every report: one HTML page that fetches nothing, runs no script and opens from disk, light or dark."""

from __future__ import annotations

from importlib import resources

from moe_lab.reports.colours import DARK, LIGHT, Palette
from moe_lab.reports.markup import Content, Markup, element

# The page is text and styles only: even markup that slipped in could load and run nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render_page(title: str, header: Content, sections: Content, footer: str, rules: str = "") -> str:
    """The whole page; `rules` are further style rules."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", _styles(rules)),
    )
    body = element("body", header, element("main", sections), element("footer", footer))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def section(title: str, caption: str, *contents: Content) -> Markup:
    """A part of the page under a heading, with a caption in plain words."""
    return element("section", element("h2", title), element("p", caption, class_="caption"), contents)


def folded(title: str, content: Markup) -> Markup:
    """Content that a click unfolds."""
    return element("details", element("summary", title), content)


def note(text: str | None) -> Markup | None:
    """A remark below a figure."""
    return element("p", text, class_="note") if text else None


def _styles(rules: str) -> Markup:
    sheet = resources.files("moe_lab.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    dark = f"@media (prefers-color-scheme: dark){{:root{{{_variables(DARK)}}}}}"
    return Markup(f":root{{{_variables(LIGHT)}}}\n{dark}\n{sheet}\n{rules}")


def _variables(palette: Palette) -> str:
    lines = []
    for name, colour in palette.items():
        triple = " ".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
        lines.append(f"--{name}:{colour};--{name}-rgb:{triple}")
    return ";".join(lines)
