"""`moe-lab route-report`: what a question router reaches, out of fold, beside what needs no learning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import open_workspace
from moe_lab.errors import LabError

if TYPE_CHECKING:
    from moe_lab.questions.results import RouteResults

_KINDS = ("question_router", "question_join")


def route_report(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN_OR_CONFIG", help="A run folder, or the config of one.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the report goes; the run folder if left out.")
    ] = None,
) -> None:
    """Report on a question router: quality against cost, groups, calibration, and what it costs to run.

    A config that is not trained yet is trained first. Where a candidate joined, the router before and after.

    Example:
      moe-lab route-report questions/mmlu-pro-ladder
      moe-lab route-report runs/question_router-lab-mmlu-pro-ladder-1a2b3c4d --out report
    """
    from moe_lab.jobs.questions import RESULTS_FILE, finished_results, save_report

    folder = _folder(ctx, run, overrides or [])
    results = finished_results(folder)
    place = out or folder
    place.mkdir(parents=True, exist_ok=True)
    page = save_report(results, place)
    print_figures(results)
    print(f"\nresults: {place / RESULTS_FILE}\nreport: {page}")


def _folder(ctx: typer.Context, run: str, overrides: list[str]) -> Path:
    """The run folder that is meant; a config's is trained if it is not."""
    lab = current_lab(ctx)
    for folder in (Path(run), lab.runs / run):
        if folder.is_dir():
            return folder
    from moe_lab.config import load_config
    from moe_lab.jobs.train import train_spec

    path = lab.find_config(run)
    spec: Any = load_config(path, overrides)
    if spec.kind not in _KINDS:
        raise LabError(f"{path}: kind {spec.kind} has no such report; give a config of kind {' or '.join(_KINDS)}")
    candidate = train_spec(open_workspace(ctx), spec, path.parent.absolute())
    return Path(candidate.staging.store.where("")).parent


def print_figures(results: RouteResults) -> None:
    """The main metric of the router and of what needs no learning, and whether it abstains."""
    from moe_lab.cli.tables import print_table
    from moe_lab.reports.route_claims import claimed_gains, describe_doubts
    from moe_lab.reports.route_report import main_metric

    metric = main_metric(results)
    main = [figure for figure in results.figures if figure.metric == metric and figure.interval is not None]
    rows = [
        (figure.role.replace("_", " "), f"{figure.value:.4f}", f"{i.low:.4f} to {i.high:.4f}")
        for figure in main
        if (i := figure.interval) is not None
    ]
    folds = f"each of {results.folds} groups left out" if results.by_group else f"{results.folds}-fold out of fold"
    if results.newcomers:
        folds = "before and after joining"
    print_table(
        f"{metric}, {folds}, {results.items} items of {results.table}",
        ("router", metric, "95% interval"),
        rows,
        right=(metric,),
    )
    for told, gain in claimed_gains(results).values():
        print(f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}) {told}")
    above, below, of = results.beside_group_table
    if of and results.groups_tell:
        print(f"at {above} of {of} of the group table's own costs the router is above it, at {below} below (95%)")
    for row in results.newcomers:
        print(
            f"{row.name} joined on {row.items} items and gets {row.share.mean:.0%} of the questions "
            f"({row.share.low:.0%} to {row.share.high:.0%}) at price {results.shown_price:.4g}, at most "
            f"{row.greatest_share:.0%} at price {row.greatest_share_price:.4g}"
        )
    for warning in (*results.warnings, *describe_doubts(results)):
        print(f"note: {warning}")
    abstained = [verdict for verdict in results.verdicts if verdict.mode != "learned"]
    if abstained:
        modes = ", ".join(sorted({verdict.mode.replace("_", " ") for verdict in abstained}))
        names = f", on {', '.join(str(verdict.group) for verdict in abstained)}" if results.by_group else ""
        print(
            f"abstained in {len(abstained)} of {results.folds} folds (to: {modes}){names}: not surely better on "
            "held-back items"
        )
    if results.mode != "learned":
        print(f"the router that was kept abstains: it answers as the {results.mode.replace('_', ' ')} does")
    cost = results.router_cost
    print(f"running it: {cost.microseconds_per_question:g} microseconds a question, {cost.parameters:,} parameters")
