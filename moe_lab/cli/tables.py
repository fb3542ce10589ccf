"""Tables that commands end with."""

from __future__ import annotations

import functools
import os
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> None:
    """A plain table; text is never read as markup. Off a terminal it is as wide as it needs to be.

    Only the last column wraps, between words. Where there is no room for that, each row becomes lines of its own.
    """
    table = Table(show_edge=False, pad_edge=False, box=None)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column != columns[-1])
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=max(80, min(200, Console(width=200).measure(table).maximum)))
    if _narrowest(columns, rows) <= console.width:
        console.print(Text(title, style="bold"), soft_wrap=True)
        console.print(table)
        return
    print(title)
    for row in rows:
        print("", *_lines(columns, row, console.width), sep="\n")


def _narrowest(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    """The width at which nothing but the last column wraps, and that between words."""
    *cells, last = ([str(row[at]) for row in (columns, *rows)] for at in range(len(columns)))
    words = [word for cell in last for word in cell.split()]
    return sum(max(map(cell_len, column)) + 2 for column in cells) + max(map(cell_len, words), default=0)


def _lines(columns: Sequence[str], row: Sequence[Any], width: int) -> list[str]:
    """One row below each other, wrapped between words only: a name is for copying."""
    cells = [f"{column}: {cell}" for column, cell in zip(columns, row, strict=True) if str(cell)]
    wrap = functools.partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    return [line for cell in cells for line in wrap(cell, subsequent_indent="  ")]


def print_stages(records: Sequence[Any], seconds: float) -> None:
    """What a study did."""
    rows = [
        (record.kind, record.outcome, "already done" if record.skipped else f"{record.seconds:.1f} s")
        for record in records
    ]
    print()
    print_table(f"stages, {seconds:.0f} s in all", ("stage", "result", "time"), rows, right=("time",))


def print_acceptance(results: Any) -> None:
    """Quality per domain beside the trunk and the best single candidate, and the curve's ends."""
    rows = [
        (
            entry.domain,
            f"{entry.trunk:.3f}",
            f"{entry.composed:.3f}",
            f"{entry.best_single.bits_per_byte:.3f}",
            entry.best_single.name,
            f"{entry.gap_to_best_percent:+.1f}%",
        )
        for entry in results.acceptance
    ]
    print()
    print_table(
        "held-out bits per byte, lower is better",
        ("domain", "trunk", "composed", "best single", "which", "composed to best"),
        rows,
        right=("trunk", "composed", "best single", "composed to best"),
    )
    print()
    points = [
        (
            curve.label,
            "" if point.price is None else f"{point.price:g}",
            f"{point.cost:,.0f}",
            f"{point.bits_per_byte.mean:.3f}",
            f"{point.bits_per_byte.low:.3f} to {point.bits_per_byte.high:.3f}",
        )
        for curve in results.curves
        if curve.role != "fixed"
        for point in curve.points
    ]
    from moe_lab.reports.findings import beside_group_table, budget_lines, kept_at_half

    print_table(
        "quality and cost over all domains",
        ("router", "price", "multiply-adds per token", "bits per byte", "95% interval"),
        points,
        right=("price", "multiply-adds per token", "bits per byte"),
    )
    print("", *budget_lines(results), sep="\n")
    for sentence in (kept_at_half(results), beside_group_table(results)):
        if sentence is not None:
            print(f"{sentence.figure} {sentence.headline} ({sentence.detail})")
