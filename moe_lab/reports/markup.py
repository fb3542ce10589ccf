"""HTML text that is escaped unless it was built here: a sample that holds a script stays a text."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

_VOID = frozenset({"meta", "input", "br", "hr"})
# Control characters are shown by their pictures: a NUL or a carriage return would not survive an HTML parser.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content: TypeAlias = "str | Markup | Iterable[Content] | None"


def escape(text: str) -> Markup:
    """Any text as HTML that shows it."""
    return Markup(html.escape(text.translate(_VISIBLE), quote=True))


def join(*contents: Content) -> Markup:
    """Contents one after the other: markup as it is, other text escaped, None left out, iterables walked."""
    parts: list[str] = []
    for content in contents:
        if isinstance(content, Markup):
            parts.append(content)
        elif isinstance(content, str):
            parts.append(escape(content))
        elif content is not None:
            parts.append(join(*content))
    return Markup("".join(parts))


def element(name: str, /, *contents: Content, **attributes: str | bool | None) -> Markup:
    """An HTML element. A last underscore in an attribute is dropped, others are hyphens; None is left out."""
    head = name
    for key, value in attributes.items():
        if value is not None and value is not False:
            written = key.rstrip("_").replace("_", "-")
            head += f" {written}" if value is True else f' {written}="{escape(value)}"'
    return Markup(f"<{head}>" if name in _VOID else f"<{head}>{join(*contents)}</{name}>")
