"""Lets candidates join a trained question router on a handful of items."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from moe_lab.artifacts.router import QuestionRouterArtifact
from moe_lab.config import decode
from moe_lab.errors import LabError
from moe_lab.jobs.candidate import StagedArtifact, find_staged, stage_artifact
from moe_lab.jobs.extended import find_extended
from moe_lab.jobs.questions import STATISTICS, find_table, load_question_router, save_report
from moe_lab.jobs.spec import QuestionJoinRun
from moe_lab.jobs.workspace import Workspace
from moe_lab.questions.join import JoinReport, join
from moe_lab.questions.joined import JoinedOn, measure_joined
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.table import ItemCandidate, ItemTable


def join_questions(workspace: Workspace, spec: QuestionJoinRun, base: Path) -> StagedArtifact:
    """Extends the router, or returns what an identical run made before."""
    known = find_extended(workspace, spec.extends, base)
    router, published = load_question_router(known.registry, known.part.digest), known.artifact
    assert isinstance(published, QuestionRouterArtifact), "load_question_router refuses others"
    table, warnings = find_table(workspace.lab, spec.table, base)
    inputs, measured = {"router": known.part.digest, "table": table.digest, "statistics": STATISTICS}, table
    if spec.measured_on is not None:
        measured, more = find_table(workspace.lab, spec.measured_on, base)
        inputs["measured_on"], warnings = measured.digest, [*warnings, *more]
    for each in (table, measured):
        if (unit := published.cost_unit) != each.cost_unit:
            raise LabError(
                f'{each.name}: costs are in "{each.cost_unit}", those of {spec.extends} in "{unit}"; use its unit'
            )
    with workspace.open_run(spec, inputs) as run:
        if run.done:
            return find_staged(run)
        started = time.perf_counter()
        cards = [ItemCandidate(**card) for card in published.candidates]
        own = cards[: len(router.heads.bias_C)]
        joining = join(router, own, table)
        if spec.measured_on is not None or set(joining.router.names) <= set(measured.names):
            made = JoinedOn(before=router, joining=joining, cards=own, items=table)
            _report(run.path, spec, made, measured, _settings(published), warnings, started)
        for line in (*warnings, *map(_told, joining.reports)):
            workspace.progress.note(line)
        new = [card for card in table.candidates if card.name not in router.names]
        extended = QuestionRouterArtifact(
            summary=spec.summary,
            licence=spec.licence,
            parents=(known.part.as_parent("extended"),),
            run=run.fingerprint,
            candidates=tuple(dataclasses.asdict(card) for card in (*cards, *new)),
            router=joining.router.describe(),
            settings=published.settings,
            join=spec.model_dump(mode="json"),
            table=table.name,
            table_digest=table.digest,
            items=len(table),
            cost_unit=table.cost_unit,
        )
        candidate = stage_artifact(run, extended.fields(), joining.router.tensors())
        run.finish({"candidate": candidate.digest, "metrics": _metrics(joining.reports)})
        return candidate


def _settings(known: QuestionRouterArtifact) -> QuestionRouterSettings:
    """Those that the router was trained with: its report and this one are then made alike."""
    # A router that was extended by an earlier version does not say what the first one was trained with.
    trained = {} if known.settings is None else dict(known.settings)
    kept = {name: trained[name] for name in QuestionRouterSettings.model_fields if name in trained}
    return decode(QuestionRouterSettings, kept, known.table)


def _report(
    folder: Path,
    spec: QuestionJoinRun,
    made: JoinedOn,
    measured: ItemTable,
    settings: QuestionRouterSettings,
    warnings: list[str],
    started: float,
) -> None:
    spent = time.perf_counter() - started
    results = measure_joined(made, measured, settings, name=spec.name, warnings=warnings, seconds=spent)
    save_report(results.model_copy(update={"licence": spec.licence}), folder)


def _told(report: JoinReport) -> str:
    return (
        f"{report.name} joins on {report.items} items: mean quality {report.measured:.3f}, predicted "
        f"{report.before:.3f} from its card and {report.after:.3f} with them; loss of an item {report.loss_before:.3f} "
        f"from its card, {report.loss_left_out:.3f} from the other items"
    )


def _metrics(reports: tuple[JoinReport, ...]) -> dict[str, float]:
    metrics = {}
    for report in reports:
        metrics[f"loss of {report.name} by its card"] = round(report.loss_before, 4)
        metrics[f"loss of {report.name} by the other items"] = round(report.loss_left_out, 4)
    return metrics
