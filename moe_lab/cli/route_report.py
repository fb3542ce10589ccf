"""`moe-lab route-report`: what a question router reaches, out of fold, beside what needs no learning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import open_workspace

if TYPE_CHECKING:
    from moe_lab.questions.results import RouteResults


def route_report(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN_OR_CONFIG", help="A run folder, or a question_router config.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the report goes; the run folder if left out.")
    ] = None,
) -> None:
    """Report on a question router: quality against cost, groups, calibration, and what it costs to run.

    A config that is not trained yet is trained first.

    Example:
      moe-lab route-report questions/mmlu-pro-ladder
      moe-lab route-report runs/question_router-lab-mmlu-pro-ladder-1a2b3c4d --out report
    """
    from moe_lab.evaluation.route_report import write_route_report
    from moe_lab.jobs.questions import REPORT_FILE, RESULTS_FILE, finished_results
    from moe_lab.training.durable import write_json

    folder = _folder(ctx, run, overrides or [])
    results = finished_results(folder)
    place = out or folder
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / RESULTS_FILE, results.model_dump(mode="json"))
    page = write_route_report(results, place / REPORT_FILE)
    print_figures(results)
    print(f"\nresults: {place / RESULTS_FILE}\nreport: {page}")


def _folder(ctx: typer.Context, run: str, overrides: list[str]) -> Path:
    """The run folder that is meant; a config's is trained if it is not."""
    lab = current_lab(ctx)
    for folder in (Path(run), lab.runs / run):
        if folder.is_dir():
            return folder
    from moe_lab.config import load_config
    from moe_lab.jobs.questions import train_questions

    path = lab.find_config(run)
    spec: Any = load_config(path, overrides, kind="question_router")
    candidate = train_questions(open_workspace(ctx), spec, path.parent.absolute())
    return Path(candidate.staging.store.where("")).parent


def print_figures(results: RouteResults) -> None:
    """The main metric of the router and of what needs no learning, and whether it abstains."""
    from moe_lab.cli.tables import print_table

    main = [figure for figure in results.figures if figure.metric in ("APGR", "AIQ") and figure.interval is not None]
    rows = [
        (figure.role.replace("_", " "), f"{figure.value:.4f}", f"{i.low:.4f} to {i.high:.4f}")
        for figure in main
        if (i := figure.interval) is not None
    ]
    folds = f"each of {results.folds} groups left out" if results.by_group else f"{results.folds}-fold out of fold"
    title = f"{main[0].metric}, {folds}, {results.items} items of {results.table}"
    print_table(title, ("router", main[0].metric, "95% interval"), rows, right=(main[0].metric,))
    above, below, of = results.beside_group_table
    if of:
        print(f"at {above} of {of} of the group table's own costs the router is above it, at {below} below (95%)")
    for warning in results.warnings:
        print(f"note: {warning}")
    abstained = [verdict for verdict in results.verdicts if verdict.mode != "learned"]
    if abstained:
        modes = ", ".join(sorted({verdict.mode.replace("_", " ") for verdict in abstained}))
        names = f", on {', '.join(str(verdict.group) for verdict in abstained)}" if results.by_group else ""
        print(
            f"abstained in {len(abstained)} of {results.folds} folds (to: {modes}){names}: no better on held-back items"
        )
    if results.mode != "learned":
        print(f"the router that was kept abstains: it answers as the {results.mode.replace('_', ' ')} does")
    cost = results.router_cost
    print(f"running it: {cost.microseconds_per_question:g} microseconds a question, {cost.parameters:,} parameters")
