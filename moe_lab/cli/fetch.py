"""`moe-lab module fetch`: an artifact for work without a network."""

from __future__ import annotations

from typing import Annotated

import typer

from moe_lab.cli.app import current_lab


def fetch(
    ctx: typer.Context,
    ref: Annotated[str, typer.Argument(metavar="REF", help="owner/name[@version], or a digest.")],
) -> None:
    """Copy an artifact into the cache, to use it without a network.

    Example:
      moe-lab module fetch snakes/python@1
      MOE_LAB_OFFLINE=1 moe-lab module show snakes/python@1
    """
    from moe_lab.registry import Registry

    lab = current_lab(ctx)
    done = Registry(lab.registry_path, create=False, trust=lab.trust_path).fetch(ref)
    print(f"fetched {done.name}  {done.digest}\n  {done.blobs} chunks, {done.bytes:,} bytes in {done.folder}")
    print(f"next: MOE_LAB_OFFLINE=1 moe-lab module show {done.name}")
