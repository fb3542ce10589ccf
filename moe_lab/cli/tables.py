"""Tables that commands end with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> None:
    """A plain table; text is never read as markup. Off a terminal it is as wide as it needs to be."""
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False, box=None)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, min(200, Console(width=200).measure(table).maximum)))
    console.print(table)


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
    from moe_lab.evaluation.findings import beside_group_table, budget_lines, kept_at_half

    print_table(
        "quality and cost over all domains",
        ("router", "price", "multiply-adds per token", "bits per byte", "95% interval"),
        points,
        right=("price", "multiply-adds per token", "bits per byte"),
    )
    print("", *budget_lines(results), sep="\n")
    for found in (kept_at_half(results), beside_group_table(results)):
        if found is not None:
            print(f"{found.figure} {found.headline} ({found.detail})")
