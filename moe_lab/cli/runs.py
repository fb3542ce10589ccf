"""`moe-lab runs`: the ledger."""

from __future__ import annotations

import typer

from moe_lab.cli.app import current_lab


def runs(ctx: typer.Context) -> None:
    """List all runs of this lab: finished, failed with their reason, interrupted, running.

    Example:
      moe-lab runs
    """
    from moe_lab.cli.tables import print_table
    from moe_lab.training import read_ledger

    folder = current_lab(ctx).runs
    records = read_ledger(folder)
    if not records:
        print(f"no runs yet in {folder}\nnext: moe-lab run configs/quickstart.yaml")
        return
    rows = [
        (record.kind, record.name, record.status, f"{record.seconds or 0:.0f} s", record.reason or record.run)
        for record in records
    ]
    print_table(f"runs in {folder}", ("kind", "name", "status", "time", "reason or folder"), rows, right=("time",))
