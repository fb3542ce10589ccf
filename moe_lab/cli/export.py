"""`moe-lab export`: compositions in the forms of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_lab.cli.app import CommandGroup
from moe_lab.cli.session import open_workspace
from moe_lab.errors import LabError

if TYPE_CHECKING:
    from moe_lab.jobs.export_dense import ExportedDecoder

export = typer.Typer(cls=CommandGroup, help="Write compositions in forms that other programs read.")

Composition = Annotated[str, typer.Argument(help="A composition config, or a lockfile.")]
Candidate = Annotated[
    str, typer.Option("--candidate", metavar="OWNER/NAME:WIDTH", help="What every token runs; trunk is the bare one.")
]


@export.command("hf")
def hf(
    ctx: typer.Context,
    composition: Composition,
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    candidate: Candidate,
) -> None:
    """Fold one candidate into the trunk and write a plain decoder, as transformers opens it.

    Exact up to the order of sums, without router, price and opt-outs. Its README.md says whose parts it is made of.

    Example:
      moe-lab export hf smollm2/composition ./german --candidate berlin/german:512
    """
    from moe_lab.jobs.export_dense import export_dense

    workspace = open_workspace(ctx)
    done = export_dense(workspace, workspace.find_lock(composition, Path.cwd()), candidate, folder)
    _tell(candidate, folder, done)
    print(f"next: transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})")


@export.command("gguf")
def gguf(
    ctx: typer.Context,
    composition: Composition,
    file: Annotated[Path, typer.Argument(help="A file that does not exist yet.")],
    candidate: Candidate,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of matrices: float32 or bfloat16; left out, that of the parts.")
    ] = None,
) -> None:
    """Fold one candidate into the trunk and write a plain decoder, as llama.cpp opens it.

    Exact in float32 up to the order of sums, without router, price and opt-outs. It is read back before it is kept.

    Example:
      moe-lab export gguf smollm2/composition ./german.gguf --candidate berlin/german:512 --dtype bfloat16
    """
    from moe_lab.jobs.export_dense import export_gguf

    if dtype not in (None, "float32", "bfloat16"):
        raise LabError(f'--dtype {dtype}: must be "float32" or "bfloat16"')
    workspace = open_workspace(ctx)
    _tell(candidate, file, export_gguf(workspace, workspace.find_lock(composition, Path.cwd()), candidate, file, dtype))


def _tell(candidate: str, place: Path, done: ExportedDecoder) -> None:
    print(
        f"exported {candidate} to {place}\n  {done.family}, {done.dtype}, {done.bytes:,} bytes, of them "
        f"{done.padded_bytes:,} zeros: one FFN width of {done.ffn_width:,} for all layers"
    )
