"""`moe-lab run`: a study from its first stage to its report."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import CoordinatorOption, MeshOption, ProcessOption, StatesOption, open_workspace
from moe_lab.errors import LabError


def run(
    ctx: typer.Context,
    config: Annotated[str, typer.Argument(help="A study: a YAML file, or a name in configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    mesh: MeshOption = None,
    coordinator: CoordinatorOption = None,
    process: ProcessOption = None,
    keep_states: StatesOption = None,
) -> None:
    """Run the stages of a study, skipping what is already done for the same inputs.

    Example:
      moe-lab run configs/quickstart.yaml
    """
    from moe_lab.config import load_config

    path = current_lab(ctx).find_config(config)
    spec = load_config(path, overrides or (), kind="study")
    from moe_lab.jobs.spec import StudySpec
    from moe_lab.jobs.study import run_study
    from moe_lab.training.processes import is_first

    assert isinstance(spec, StudySpec)
    started = time.perf_counter()

    def announce(number: int, of: int, kind: str, stage: str) -> None:
        if is_first():
            print(f"[{number}/{of}] {kind}: {stage}", file=sys.stderr, flush=True)

    try:
        records = run_study(
            open_workspace(ctx, mesh=mesh, coordinator=coordinator, process=process, keep_states=keep_states),
            spec,
            path.parent.absolute(),
            announce,
        )
    except LabError as error:
        raise type(error)(f"{error} (study {spec.name}; what is done is kept, the same command goes on)") from error
    _print_closing(records, time.perf_counter() - started)


def _print_closing(records: list, seconds: float) -> None:
    from moe_lab.cli.tables import print_acceptance, print_stages

    print_stages(records, seconds)
    for record in records:
        if record.evaluated is not None:
            print_acceptance(record.evaluated.results)
            print(f"\nreport: {record.evaluated.report}")
