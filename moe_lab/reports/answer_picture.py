"""A text that a composed model wrote, as a picture: each token in the hue of its module, the stronger, the wider."""

from __future__ import annotations

import html
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from moe_lab.files import write_text
from moe_lab.reports.colours import LIGHT, LIGHT_STRENGTHS, MODULE_HUES

COLUMNS = 92
"""Characters of a line; one of Chinese, Japanese or Korean takes two."""
_WIDE, _HIGH, _EDGE = 8.4, 24, 20  # pixels of a column and of a line, and around it all
_FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
_TAB = 4


class WrittenToken(NamedTuple):
    """A token, and what chose it."""

    text: str
    modules: tuple[tuple[str, int], ...]
    """With their widths in hidden units; none is the bare trunk."""


class _Part(NamedTuple):
    """A run of characters on one line; `module` is None for the trunk and for the prompt."""

    line: int
    column: int
    text: str
    module: str | None
    width: int


def write_answer_picture(prompt: str, tokens: Sequence[WrittenToken], path: Path) -> Path:
    """Writes an SVG of the prompt and what was written behind it, with a legend; returns the path."""
    parts = list(_lay_out(prompt, tokens))
    # Of several modules the widest gives a token its hue.
    used = Counter(_leading(token)[0] for token in tokens)
    names = sorted((name for name in used if name is not None), key=lambda name: -used[name])
    widths = sorted({width for token in tokens for _, width in token.modules})
    hues = {name: LIGHT[f"module-{index % MODULE_HUES}"] for index, name in enumerate(names)}
    lines = 1 + max((part.line for part in parts), default=0)
    body = [_draw(part, hues, widths) for part in parts]
    own: dict[str, set[int]] = {name: set() for name in names}
    for token in tokens:
        for name, width in token.modules:
            own.get(name, set()).add(width)
    body += _legend(used, hues, {name: sorted(ran) for name, ran in own.items()}, widths, _EDGE + lines * _HIGH + 14)
    wide = round(COLUMNS * _WIDE + 2 * _EDGE)
    high = _EDGE * 2 + (lines + 1 + len(hues) + (None in used)) * _HIGH
    write_text(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        f'font-family="{_FONT}" font-size="14" role="img" aria-label="{html.escape(_told(prompt, tokens))}">\n'
        f'<rect width="{wide}" height="{high}" rx="8" fill="{LIGHT["page"]}" stroke="{LIGHT["rule"]}"/>\n'
        + "\n".join(body)
        + "\n</svg>\n",
    )
    return path


def _told(prompt: str, tokens: Sequence[WrittenToken]) -> str:
    return _printable(f"{prompt} → {''.join(token.text for token in tokens)}".replace("\n", " "))


def _leading(token: WrittenToken) -> tuple[str | None, int]:
    """The module that gives a token its hue, and how wide it was run."""
    return max(token.modules, key=lambda pair: pair[1], default=(None, 0))


def _lay_out(prompt: str, tokens: Sequence[WrittenToken]) -> Iterator[_Part]:
    line = column = 0
    for text, module, width in ((prompt, None, -1), *((token.text, *_leading(token)) for token in tokens)):
        run, start = "", column
        for letter in _printable(text):
            wide = _columns(letter)
            if letter == "\n" or column + wide > COLUMNS:
                if run:
                    yield _Part(line, start, run, module, width)
                line, column, run, start = line + 1, 0, "", 0
            if letter != "\n":
                run, column = run + letter, column + wide
        if run:
            yield _Part(line, start, run, module, width)


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _printable(text: str) -> str:
    """XML has no control characters but a few."""
    return "".join(letter if letter == "\n" or letter.isprintable() else "\u00b7" for letter in text.expandtabs(_TAB))


def _draw(part: _Part, hues: dict[str, str], widths: Sequence[int]) -> str:
    x, y = _EDGE + part.column * _WIDE, _EDGE + part.line * _HIGH
    wide = sum(map(_columns, part.text)) * _WIDE
    look = f'fill="{LIGHT["muted"]}" font-weight="600"' if part.width < 0 else f'fill="{LIGHT["ink"]}"'
    label = (
        f'<text x="{x:.1f}" y="{y + 16}" textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve" '
        f"{look}>{html.escape(part.text)}</text>"
    )
    if part.module is None:
        return label
    return _block(x, y, wide, hues[part.module], _strength(part.width, widths)) + label


def _block(x: float, y: float, wide: float, hue: str, strength: float) -> str:
    return (
        f'<rect x="{x + 0.5:.1f}" y="{y}" width="{max(1.0, wide - 1):.1f}" height="{_HIGH - 3}" rx="3" fill="{hue}" '
        f'fill-opacity="{strength:.2f}"/>'
    )


def _strength(width: int, widths: Sequence[int]) -> float:
    weak, strong = LIGHT_STRENGTHS
    return weak + (strong - weak) * (widths.index(width) / (len(widths) - 1) if len(widths) > 1 else 0.5)


def _legend(
    used: Counter[str | None], hues: dict[str, str], own: dict[str, list[int]], widths: Sequence[int], top: float
) -> list[str]:
    """A line for each module, the one that worked most first: its widths, its name, and how many tokens it chose."""
    total, made = used.total() or 1, []
    rows = [*hues, *([None] if None in used else [])]
    for index, name in enumerate(rows):
        y = top + index * _HIGH
        ran = own.get(name or "", [])
        for place, width in enumerate(ran):
            made.append(_block(_EDGE + 26 * place, y, 26, hues[name or ""], _strength(width, widths)))
        words = "the bare trunk" if name is None else f"{name}, {' · '.join(map(str, ran))} hidden units"
        made.append(
            f'<text x="{_EDGE + 26 * len(widths) + 10}" y="{y + 16}" font-size="13" fill="{LIGHT["muted"]}">'
            f"{html.escape(words)}: {used[name] / total:.0%} of the tokens</text>"
        )
    return made
