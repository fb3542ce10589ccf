"""`moe-lab runs`: the ledger."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from moe_lab.cli.app import current_lab
from moe_lab.errors import NotFound, did_you_mean

if TYPE_CHECKING:
    from moe_lab.training import RunRecord

COLUMNS = ("begun", "state", "kind", "name", "time", "result, reason or folder")


def runs(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Only runs with this in their name or folder.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only runs of this kind, such as module.")] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="Only these: finished, failed, interrupted or running.")
    ] = None,
) -> None:
    """List the runs of this lab, oldest first: when, in what state, and with what result or for what reason.

    Example:
      moe-lab runs
      moe-lab runs python --kind module --state interrupted
    """
    from moe_lab.cli.tables import print_table
    from moe_lab.training import read_ledger
    from moe_lab.training.ledger import Status

    folder = current_lab(ctx).runs
    records = read_ledger(folder)
    if not records:
        print(f"no runs yet in {folder}\nnext: moe-lab run configs/quickstart.yaml")
        return
    _known("kind", kind, {record.kind for record in records})
    _known("state", state, get_args(Status))
    chosen = [
        record
        for record in records
        if (kind is None or record.kind == kind)
        and (state is None or record.status == state)
        and (name is None or name in record.name or name in record.run)
    ]
    if not chosen:
        print(f"none of the {len(records)} runs in {folder} is such a one")
        return
    print_table(f"runs in {folder}", COLUMNS, [_row(record) for record in chosen], right=("time",))


def _known(option: str, value: str | None, values: Iterable[str]) -> None:
    if value is not None and value not in values:
        raise NotFound(f'--{option} "{value}" does not exist here.{did_you_mean(value, values)}')


def _row(record: RunRecord) -> tuple[str, ...]:
    begun = datetime.datetime.fromisoformat(record.started).astimezone()
    last = record.reason or _headline(record.result or {}) or record.run
    return f"{begun:%Y-%m-%d %H:%M}", record.status, record.kind, record.name, f"{record.seconds:.0f} s", last


def _headline(result: dict[str, Any]) -> str:
    """The figures of a result in a few words; empty for a run that has none to show, such as an evaluation."""
    claims, metrics = result.get("claims"), result.get("metrics")
    if claims:  # of a module one per width and domain, the widest last
        return f"{claims[-1]['value']} bits per byte on {claims[-1]['domain']}"
    if isinstance(metrics, dict):
        loss = {"loss": metrics["loss"]} if "loss" in metrics else metrics
        return ", ".join(f"{name} {value:.4g}" for name, value in loss.items() if isinstance(value, (int, float)))[:80]
    return f"{result['items']} items" if "items" in result else ""
