"""`moe-lab compose`: a composition's lockfile."""

from __future__ import annotations

from typing import Annotated

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import open_workspace


def compose(
    ctx: typer.Context,
    config: Annotated[str, typer.Argument(help="A composition: a YAML file, or a name in configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    accept_replaced: Annotated[
        bool, typer.Option("--accept-replaced", help="Also modules that replace those the router learned from.")
    ] = False,
) -> None:
    """Resolve a composition into a lockfile, and check that its parts fit together.

    Example:
      moe-lab compose configs/quickstart/composition.yaml price=0.1
      moe-lab compose configs/quickstart/composition.yaml --accept-replaced
    """
    path = current_lab(ctx).find_config(config)
    from moe_lab.compose.lockfile import artifact_name
    from moe_lab.jobs.compose import compose as resolve

    lock, written = resolve(open_workspace(ctx), path, overrides or (), accept_replaced)
    router = lock.router["type"] if isinstance(lock.router, dict) else lock.router.ref
    print(f"composed {lock.name}: {lock.trunk.ref}, {len(lock.modules)} modules, router {router}")
    for part in lock.modules:
        learned = lock.replaced.get(artifact_name(part.ref))
        note = f"  in place of {learned.ref} {learned.digest[:19]}, which the router learned from" if learned else ""
        print(f"  {part.ref}  {part.digest[:19]}{note}")
    print(f"lockfile: {written}")
