"""`moe-lab module export` and `import`: artifacts as folders of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import open_registry, open_workspace
from moe_lab.errors import LabError, printable

if TYPE_CHECKING:
    from moe_lab.jobs.exchange import Evidence


def export(
    ctx: typer.Context,
    ref: Annotated[str, typer.Argument(metavar="REF", help="owner/name[@version][:width], or a digest.")],
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
) -> None:
    """Write an artifact, or one rung of a module, as safetensors with a card.

    Example:
      moe-lab module export snakes/python ./python-module
    """
    from moe_lab.jobs.export import export_artifact

    card = export_artifact(open_registry(ctx), ref, folder)
    print(f"exported {card.ref or card.digest} to {folder}\n  {card.digest}")


def import_(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="model.safetensors and card.json, as export writes them.")],
    name: Annotated[
        str | None, typer.Option("--as", metavar="OWNER/NAME", help="Another name than the card's.")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="A module's config: its text measures the claims again.")
    ] = None,
) -> None:
    """Publish a module from a folder of safetensors, after its admission test.

    Example:
      moe-lab module import ./python-module --as snakes/python
    """
    from moe_lab.jobs.exchange import import_folder

    done = import_folder(open_workspace(ctx), folder, name, _evidence(ctx, config))
    for finding in done.findings:
        print(printable(f"ok    {finding.check}: {finding.detail}"))
    print(f"{'published' if done.created else 'already published'} {done.part.ref}\n  {done.part.digest}")
    if done.created and not done.measured:
        print("claims are as the card states them, not measured here; --config CONFIG measures them")


def _evidence(ctx: typer.Context, config: str | None) -> Evidence | None:
    if config is None:
        return None
    from moe_lab.jobs.spec import DistillRun, ModuleSpec
    from moe_lab.jobs.train import load_training

    path = current_lab(ctx).find_config(config)
    spec = load_training(path, [])
    if not isinstance(spec, ModuleSpec | DistillRun):
        raise LabError(
            f"--config {config} is a {spec.kind}; name the config of a module, whose text measures the claims"
        )
    return spec, path.parent.absolute()
