"""`moe-lab export`: compositions in the forms of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_lab.cli.app import CommandGroup
from moe_lab.cli.session import open_workspace

export = typer.Typer(cls=CommandGroup, help="Write compositions in forms that other programs read.")


@export.command("hf")
def hf(
    ctx: typer.Context,
    composition: Annotated[str, typer.Argument(help="A composition config, or a lockfile.")],
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    candidate: Annotated[
        str,
        typer.Option("--candidate", metavar="OWNER/NAME:WIDTH", help="What every token runs; trunk is the bare one."),
    ],
) -> None:
    """Fold one candidate into the trunk and write a plain decoder, as transformers opens it.

    Exact up to the order of sums, without router, price and opt-outs. Its README.md says whose parts it is made of.

    Example:
      moe-lab export hf smollm2/composition ./german --candidate berlin/german:512
    """
    from moe_lab.jobs.export_dense import export_dense

    workspace = open_workspace(ctx)
    done = export_dense(workspace, workspace.find_lock(composition, Path.cwd()), candidate, folder)
    print(
        f"exported {candidate} to {folder}\n  {done.family}, {done.dtype}, {done.bytes:,} bytes, of them "
        f"{done.padded_bytes:,} zeros: one FFN width of {done.ffn_width:,} for all layers"
    )
    print(f"next: transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})")


@export.callback()
def _group() -> None:
    """Keeps `hf` a word of its own while it is the only form."""
