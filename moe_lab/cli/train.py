"""`moe-lab train`: one training."""

from __future__ import annotations

from typing import Annotated

import typer

from moe_lab.cli.app import current_lab, next_command
from moe_lab.cli.session import CoordinatorOption, MeshOption, ProcessOption, StatesOption, open_workspace


def train(
    ctx: typer.Context,
    config: Annotated[str, typer.Argument(help="A YAML file, or a name in configs/ or modules/.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Publish the result when it is trained.")] = False,
    mesh: MeshOption = None,
    coordinator: CoordinatorOption = None,
    process: ProcessOption = None,
    keep_states: StatesOption = None,
) -> None:
    """Train a trunk, a module, a router of tokens or of questions, or a shrunk child, by the config's kind.

    Interrupted or killed, the same command goes on where it stopped.

    Example:
      moe-lab train modules/python/module.yaml train.steps=200
      moe-lab train configs/quickstart/router-gain.yaml --publish
    """
    path = current_lab(ctx).find_config(config)
    from moe_lab.jobs.train import load_training, train_spec

    spec = load_training(path, overrides or ())
    workspace, base = (
        open_workspace(ctx, mesh=mesh, coordinator=coordinator, process=process, keep_states=keep_states),
        path.parent.absolute(),
    )
    candidate = train_spec(workspace, spec, base)
    for claim in candidate.claims:
        width = f"width {claim['width']}" if claim["width"] else "trunk alone"
        print(f"  {claim['domain']}, {width}: {claim['value']} bits per byte held out")
    print(f"trained {candidate.name}: {candidate.staging.store.where('')}")
    if publish:
        from moe_lab.jobs.publish import publish_checked

        part, created = publish_checked(workspace, candidate, spec, base)
        print(f"{'published' if created else 'already published'} {part.ref} ({part.digest[:19]})")
    else:
        print(f"next: {next_command(ctx, 'module', 'publish', config, *(overrides or ()))}")
