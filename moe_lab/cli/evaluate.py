"""`moe-lab eval`: a composition on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import CoordinatorOption, MeshOption, ProcessOption, StatesOption, open_workspace
from moe_lab.errors import LabError


def evaluate(
    ctx: typer.Context,
    composition: Annotated[str, typer.Argument(help="An evaluation config, a composition config, or a lockfile.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="NAME", help="Opt out a module, owner/name.")
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="DATA", help="A domain to evaluate on, where no evaluation config says."),
    ] = None,
    mesh: MeshOption = None,
    coordinator: CoordinatorOption = None,
    process: ProcessOption = None,
    keep_states: StatesOption = None,
) -> None:
    """Evaluate a composition: the matrix, the quality-cost curve beside its baselines, a report.

    Example:
      moe-lab eval configs/quickstart/evaluation.yaml
      moe-lab eval configs/quickstart/composition.yaml --domain python --domain english --without snakes/python
    """
    lab = current_lab(ctx)
    path = lab.find_config(composition)
    spec, base = _evaluation(path, overrides or [], without or [], domain or [])
    from moe_lab.cli.tables import print_acceptance
    from moe_lab.jobs.evaluate import evaluate as measure

    evaluated = measure(
        open_workspace(ctx, mesh=mesh, coordinator=coordinator, process=process, keep_states=keep_states), spec, base
    )
    if not evaluated.fresh:
        print("already measured for the same model, text and settings")
    print_acceptance(evaluated.results)
    print(f"\nresults: {evaluated.folder / 'results.json'}\nreport: {evaluated.report}")


def _evaluation(path: Path, overrides: list[str], without: list[str], domains: list[str]) -> tuple[Any, Path]:
    from moe_lab.config import apply_overrides, decode, load_yaml
    from moe_lab.evaluation.spec import EvaluationSpec

    if path.suffix == ".json" or (data := load_yaml(path)).get("kind") == "composition":
        if not domains:
            raise LabError(
                f"{path} says what to evaluate, not on what: add --domain DATA (a name in configs/data or a file), "
                "or write an evaluation config"
            )
        data = {"kind": "evaluation", "name": path.name.partition(".")[0], "composition": str(path.absolute())}
        base = Path.cwd()
    else:
        base = path.parent.absolute()
    if domains:
        data["domains"] = [str(Path(d).absolute()) if Path(d).is_file() else d for d in domains]
    if without:
        data["without"] = sorted({*data.get("without", []), *without})
    return decode(EvaluationSpec, apply_overrides(data, overrides), str(path)), base
