"""What the commands that do work share: the workspace of this call, and the devices and processes it works on."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from moe_lab.cli.app import current_lab
from moe_lab.errors import LabError

if TYPE_CHECKING:
    from moe_lab.evaluation.spec import MeasuredText
    from moe_lab.jobs.workspace import Workspace
    from moe_lab.parallel.spec import MeshSpec
    from moe_lab.registry import Registry

TextSettings = TypeVar("TextSettings", bound="MeasuredText")
MeshOption = Annotated[
    str | None,
    typer.Option(
        "--mesh",
        metavar="data=N,expert=M",
        help="Devices to use: M hold the modules between them, N such rows share the batch; with ,trunk=sharded all "
        "hold the trunk between them. All devices, if only --coordinator is given.",
    ),
]
CoordinatorOption = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        metavar="HOST:PORT|auto",
        help="Work together with other processes that run this same command; auto asks the cluster (TPU pod, Slurm).",
    ),
]
ProcessOption = Annotated[
    str | None, typer.Option("--process", metavar="I/N", help="This is process I of N, counted from 0.")
]


StatesOption = Annotated[
    float | None,
    typer.Option(
        "--keep-states",
        metavar="GB",
        min=0.001,
        help="Keep what lies under the first routed layer on disk, at most so much: the next module, table or "
        "evaluation on the same text reads it.",
    ),
]


def open_workspace(
    ctx: typer.Context,
    *,
    may_start_runs: bool = True,
    mesh: str | None = None,
    coordinator: str | None = None,
    process: str | None = None,
    keep_states: float | None = None,
) -> Workspace:
    """The lab of this call with its registry and a progress display. Imports the array libraries."""
    _fix_numbers()
    _join(coordinator, process)
    spec = _mesh(mesh, several=coordinator is not None)
    from moe_lab.compose.kept_states import KeptStates
    from moe_lab.jobs.workspace import Workspace
    from moe_lab.parallel.mesh import make_mesh
    from moe_lab.training import make_progress

    lab = current_lab(ctx)
    return Workspace(
        lab,
        make_progress(),
        may_start_runs,
        mesh=None if spec is None else make_mesh(spec),
        shard_trunk=spec is not None and spec.trunk == "sharded",
        transport="ring" if spec is None else spec.transport,
        states=None if keep_states is None else KeptStates(lab.runs / "states", int(keep_states * 1e9)),
    )


def open_registry(ctx: typer.Context) -> Registry:
    """The registry of this call's lab, to look into it: no array library is imported."""
    from moe_lab.registry import Registry

    lab = current_lab(ctx)
    return Registry(lab.registry_path, create=False, trust=lab.trust_path)


# What would make another computation of the same config, and so belongs to the program and not to somebody's shell.
_FIXED = {"jax_enable_x64": False, "jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True}


def _fix_numbers() -> None:
    import jax

    for name, value in _FIXED.items():
        if jax.config.values[name] != value:
            setting, asked = name.upper(), jax.config.values[name]
            print(f"note: {setting}={asked} has no effect, moe-lab computes with {value}", file=sys.stderr, flush=True)
            jax.config.update(name, value)


def _join(coordinator: str | None, process: str | None) -> None:
    """Meets the other processes."""
    if coordinator is None:
        if process is not None:
            raise LabError("--process needs --coordinator: the HOST:PORT of process 0, the same in all processes")
        return
    from moe_lab.training.processes import is_first, join

    if coordinator == "auto":
        join()
    else:
        number = re.fullmatch(r"(\d+)/(\d+)", process or "")
        if number is None or int(number[1]) >= int(number[2]):
            raise LabError(f"--coordinator {coordinator} needs --process I/N, such as 0/2 for the first of two")
        join(coordinator, int(number[1]), int(number[2]))
    if not is_first():
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  the first process speaks for all, to the end


def _mesh(text: str | None, several: bool) -> MeshSpec | None:
    from moe_lab.parallel.spec import MeshSpec, parse_mesh

    if text is not None:
        return parse_mesh(text)
    if not several:
        return None
    import jax

    return MeshSpec(expert=jax.device_count())


def text_settings(
    spec: type[TextSettings], domains: list[str] | None, overrides: list[str] | None, command: str, **defaults: int
) -> TextSettings:
    """What a command measures on: named domains and files, and `key=value` for the rest. Files go by absolute path."""
    from moe_lab.config import apply_overrides, decode

    named = [str(Path(text).absolute()) if Path(text).is_file() else text for text in domains or []]
    return decode(spec, apply_overrides({"domains": named, **defaults}, overrides or []), command)
