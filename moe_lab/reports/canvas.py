"""How figures are drawn: a figure of its own, the page's fonts, and SVG text that follows the page's colours.

matplotlib is imported inside the functions, only when something is drawn.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

from moe_lab.reports.colours import LIGHT, Palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Placeholder colours that are turned into the page's CSS variables once the SVG is written.
PLACEHOLDERS: Palette = {name: f"#00a1{number:02x}" for number, name in enumerate(LIGHT)}
_FONTS = ("Inter", "Helvetica Neue", "Segoe UI", "Arial", "Liberation Sans")


@contextmanager
def canvas_style(palette: Palette) -> Iterator[None]:
    """Fonts and colours of everything that is drawn inside the block."""
    import matplotlib

    settings: dict[Any, Any] = {
        "font.family": ["sans-serif"],
        "font.sans-serif": [*_installed_fonts(), "DejaVu Sans"],
        "font.size": 10,
        "text.parse_math": False,
        "text.color": palette["ink"],
        "axes.edgecolor": palette["rule"],
        "axes.facecolor": "none",
        "axes.labelcolor": palette["muted"],
        "axes.titlecolor": palette["muted"],
        "axes.titlesize": 10,
        "axes.titlepad": 9,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "grid.color": palette["rule"],
        "grid.linewidth": 0.8,
        "xtick.color": palette["rule"],
        "ytick.color": palette["rule"],
        "xtick.labelcolor": palette["muted"],
        "ytick.labelcolor": palette["muted"],
        "ytick.major.size": 0,
        "svg.fonttype": "none",
        "svg.hashsalt": "moe-lab",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A name in a script that the font lacks shows as boxes in the PNG; in the page the browser draws it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def new_figure(wide: float, high: float) -> Figure:
    """An empty figure of some inches, which no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, high), dpi=100, facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def svg_text(figure: Figure, name: str) -> str:
    """The figure as an SVG element without fixed colours, size or metadata, its ids led by the name."""
    written = StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r"#00a1[0-9a-f]{2}", _variable, text)


def _installed_fonts() -> list[str]:
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [name for name in _FONTS if name in installed]


def _variable(match: re.Match[str]) -> str:
    names = list(PLACEHOLDERS)
    return f"var(--{names[int(match[0][-2:], 16)]})"
