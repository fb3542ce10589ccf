"""`moe-lab module fetch`: an artifact for work without a network."""

from __future__ import annotations

from typing import Annotated

import typer

from moe_lab.cli.session import open_registry


def fetch(
    ctx: typer.Context,
    ref: Annotated[str, typer.Argument(metavar="REF", help="owner/name[@version], or a digest.")],
) -> None:
    """Copy an artifact into the cache, to use it without a network.

    Example:
      moe-lab module fetch snakes/python@1
      MOE_LAB_OFFLINE=1 moe-lab module show snakes/python@1
    """
    done = open_registry(ctx).fetch(ref)
    print(f"fetched {done.name}  {done.digest}\n  {done.blobs} chunks, {done.bytes:,} bytes in {done.folder}")
    print(f"next: MOE_LAB_OFFLINE=1 moe-lab module show {done.name}")
