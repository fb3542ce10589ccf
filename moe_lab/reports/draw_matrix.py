"""The matrix of systems and domains, on matplotlib axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moe_lab.evaluation.results import MatrixCell, Results
from moe_lab.reports.colours import TINT_STRENGTH, Palette
from moe_lab.reports.matrix_view import Matrix, Row
from moe_lab.reports.wording import bits, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 12


def draw_matrix(axes: Axes, results: Results, palette: Palette) -> None:
    """Draws trunk, each module at its widest, the composition and, where there is room, it without each."""
    from matplotlib.patches import Rectangle

    matrix = Matrix(results)
    rows = _essential(matrix.rows)
    axes.set_xlim(0, len(matrix.domains))
    axes.set_ylim(len(rows), 0)
    room = max(6, 72 // len(matrix.domains))
    axes.set_xticks([i + 0.5 for i in range(len(matrix.domains))], _clipped(matrix.domains, room))
    axes.set_yticks([i + 0.5 for i in range(len(rows))], _clipped([row.label for row in rows], 20))
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.tick_params(length=0, pad=6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for y, row in enumerate(rows):
        for x, domain in enumerate(matrix.domains):
            cell = row.cells.get(domain)
            if cell is None:
                continue
            tint = matrix.tint(cell)
            colour = palette["better" if tint < 0 else "worse"]
            box = Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, fc=palette["panel"], lw=0)
            axes.add_patch(box)
            axes.add_patch(Rectangle(box.get_xy(), 0.96, 0.94, fc=colour, alpha=TINT_STRENGTH * abs(tint), lw=0))
            _write_cell(axes, x + 0.5, y + 0.5, matrix, cell, palette)
        if row.system == "composed":
            axes.get_yticklabels()[y].set_fontweight("bold")


def _write_cell(axes: Axes, x: float, y: float, matrix: Matrix, cell: MatrixCell, palette: Palette) -> None:
    relative = matrix.relative(cell)
    best = cell.bits_per_byte.mean == matrix.best(cell.domain)
    lift = 0.0 if relative is None else 0.13
    text = bits(cell.bits_per_byte.mean)
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    axes.text(x, y - lift, text, fontsize=10.5, color=palette["ink"], weight="bold" if best else "normal", **centred)
    if relative is not None:
        axes.text(x, y + 0.24, percent(relative), fontsize=8, color=palette["ink"], **centred)


def _clipped(names: list[str], most: int) -> list[str]:
    return [name if len(name) <= most else name[: most - 1] + "…" for name in names]


def _essential(rows: list[Row]) -> list[Row]:
    widest = {row.module: row for row in rows if row.system == "alone"}
    essential = [row for row in rows if row.system != "alone" or widest[row.module] is row]
    if len(essential) <= _MOST_ROWS:
        return essential
    return [row for row in essential if row.system != "left_out"]
