"""What the commands that do work share: the workspace of this call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from moe_lab.cli.app import current_lab

if TYPE_CHECKING:
    from moe_lab.jobs.workspace import Workspace


def open_workspace(ctx: typer.Context, *, may_start_runs: bool = True) -> Workspace:
    """The lab of this call with its registry and a progress display. Imports the array libraries."""
    from moe_lab.jobs.workspace import Workspace
    from moe_lab.training import make_progress

    return Workspace(current_lab(ctx), make_progress(), may_start_runs)
