"""The matrix of systems and domains as rows to show, and how each cell compares to the trunk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import log

from moe_lab.evaluation.results import MatrixCell, Results, System
from moe_lab.reports.colours import Scale, short_name

GROUPS: dict[System, str] = {
    "trunk": "Trunk alone",
    "alone": "One module for every token",
    "composed": "Composed, with the router",
    "left_out": "Composed, with one module left out",
}
_LEAST_FULL_TINT = 0.02  # a domain on which nothing changes by 2% has no strong colour


@dataclass(frozen=True)
class Row:
    """One system's cells by domain."""

    system: System
    module: str | None
    width: int | None
    cells: dict[str, MatrixCell]

    @property
    def label(self) -> str:
        """The row in a few characters, without the owner's name."""
        name = short_name(self.module or "")
        if self.system == "alone":
            return f"{name}:{self.width}" if self.width is not None else name
        return f"without {name}" if self.system == "left_out" else self.system

    @property
    def mean_cost(self) -> float:
        """Multiply-adds per token, averaged over the domains."""
        return sum(cell.cost for cell in self.cells.values()) / len(self.cells)


class Matrix:
    """The rows in the order of `GROUPS`, then of the candidates' modules, then of width."""

    def __init__(self, results: Results) -> None:
        rows: dict[tuple[System, str | None, int | None], dict[str, MatrixCell]] = {}
        for cell in results.matrix:
            rows.setdefault((cell.system, cell.module, cell.width), {})[cell.domain] = cell
        rank = {module: number for number, module in enumerate(Scale(results).modules)}
        order = list(GROUPS)
        keys = sorted(
            rows, key=lambda key: (order.index(key[0]), rank.get(key[1] or "", -1), key[1] or "", key[2] or 0)
        )
        self.rows = [Row(*key, cells=rows[key]) for key in keys]
        self.domains = [domain.name for domain in results.domains]
        self._trunk = next((row.cells for row in self.rows if row.system == "trunk"), {})

    def cell(
        self, domain: str, system: System, module: str | None = None, width: int | None = None
    ) -> MatrixCell | None:
        """The cell of one system on one domain, where it was measured."""
        wanted = (system, module, width)
        rows = (row for row in self.rows if (row.system, row.module, row.width) == wanted)
        return next((row.cells.get(domain) for row in rows), None)

    def relative(self, cell: MatrixCell) -> float | None:
        """Change against the trunk on that domain in percent, below zero where better."""
        trunk = self._trunk.get(cell.domain)
        if trunk is None or trunk is cell or trunk.bits_per_byte.mean <= 0:
            return None
        return 100 * (cell.bits_per_byte.mean / trunk.bits_per_byte.mean - 1)

    def tint(self, cell: MatrixCell) -> float:
        """From -1 (best) over 0 (as the trunk) to 1: the change against the trunk on a log scale, clipped.

        The scale is that of the domain's largest change for the better: neither one terrible cell nor one module
        that is very good at its own domain may fade the rest.
        """
        relative = self.relative(cell)
        return 0.0 if relative is None else max(-1.0, min(1.0, _log_ratio(relative) / self._full_tint[cell.domain]))

    @cached_property
    def _full_tint(self) -> dict[str, float]:
        full = dict.fromkeys(self.domains, _LEAST_FULL_TINT)
        for row in self.rows:
            for domain, cell in row.cells.items():
                full[domain] = max(full[domain], -_log_ratio(self.relative(cell) or 0.0))
        return full

    def best(self, domain: str) -> float | None:
        """Least bits per byte of a domain among all rows."""
        means = [row.cells[domain].bits_per_byte.mean for row in self.rows if domain in row.cells]
        return min(means, default=None)


def _log_ratio(percent_change: float) -> float:
    return log(max(1 + percent_change / 100, 1e-6))
