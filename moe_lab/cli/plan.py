"""`moe-lab plan`: a model on TPUs that are not here."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import open_workspace
from moe_lab.errors import LabError


def plan(
    ctx: typer.Context,
    composition: Annotated[str, typer.Argument(help="A plan or composition config, or a lockfile.")],
    topology: Annotated[
        str, typer.Option("--topology", metavar="NAME", help="Such as v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    train: Annotated[bool, typer.Option("--train", help="The training step of the modules.")] = False,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Sequences in the batch, over all devices.")] = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", min=2, help="Tokens of a sequence.")] = None,
    mesh: Annotated[str | None, typer.Option("--mesh", metavar="data=N,expert=M", help="The mesh to use.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where plan.json and plan.svg go.")] = None,
    layer_check: Annotated[
        bool, typer.Option(help="Also compile one routed layer alone and compare its gradient with its forward pass.")
    ] = True,
) -> None:
    """Compile a model for a TPU topology without a TPU: who lives where, and does it fit. Exits with 1 if it does not.

    Example:
      moe-lab plan modules-64 --topology v5e:4x4
      moe-lab plan modules-64-train --topology v5p:4x4x4 --mesh data=4,expert=16
      moe-lab plan quickstart/composition.yaml --topology v5e:2x2 --train seq_len=256
    """
    from moe_lab.planning.topologies import parse_topology, prepare_compiler

    where = parse_topology(topology)
    prepare_compiler()
    from moe_lab.cli.plan_tables import print_plan
    from moe_lab.jobs.plan import find_model, save_plan
    from moe_lab.planning.make import make_plan

    changed = list(overrides or [])
    changed += ["train=true"] if train else []
    changed += [f"rows={rows}"] if rows else []
    changed += [f"seq_len={seq_len}"] if seq_len else []
    changed += _mesh_overrides(mesh) if mesh else []
    model = find_model(open_workspace(ctx), composition, changed)
    made = make_plan(model, where, _say, layer_check)
    step = "-train" if model.settings.train else ""
    folder = out or current_lab(ctx).runs / "plans" / f"{model.name}{step}-{where.name.replace(':', '-')}"
    saved, picture = save_plan(made, folder, shlex.join(["moe-lab", *sys.argv[1:]]))
    print_plan(made)
    print(f"\nplan: {saved}\npicture: {picture}\n{made.verdict}")
    if not made.fits:
        raise typer.Exit(1)


def _mesh_overrides(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if sorted(part.partition("=")[0] for part in parts) != ["data", "expert"]:
        raise LabError(f'--mesh "{text}": write both axes, such as data=4,expert=16')
    return [f"mesh.{part}" for part in parts]


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
