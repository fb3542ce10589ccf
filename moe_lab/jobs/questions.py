"""Trains a question router on an outcome table, evaluates it out of fold, and keeps both in its run folder."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

from moe_lab.artifacts.places import is_elsewhere
from moe_lab.artifacts.router import QuestionRouterArtifact, read_router
from moe_lab.errors import Damaged, LabError, NotFound, Refused
from moe_lab.files import write_json
from moe_lab.jobs.candidate import StagedArtifact, find_staged, stage_artifact
from moe_lab.jobs.spec import QuestionRouterRun
from moe_lab.jobs.workspace import Workspace
from moe_lab.lab import Lab
from moe_lab.questions.encoder import open_encoder
from moe_lab.questions.evaluate import measure_router, score_out_of_fold
from moe_lab.questions.features import RawFeatures, raw_features
from moe_lab.questions.folds import evaluation_folds
from moe_lab.questions.read import read_table
from moe_lab.questions.results import AREA, RouteResults
from moe_lab.questions.router import QuestionRouter
from moe_lab.questions.summary import summarise
from moe_lab.questions.table import ItemTable
from moe_lab.registry import Registry
from moe_lab.reports.written import QUESTION_REPORTS, write_reports
from moe_lab.training import Run

RESULTS_FILE = "route-results.json"
STATISTICS = "2"
"""Part of a run's identity: how routers decide to abstain, and what reports count as a gain."""


def train_questions(workspace: Workspace, spec: QuestionRouterRun, base: Path) -> StagedArtifact:
    """Trains the router, or returns what an identical run on an identical table made before."""
    table, warnings = find_table(workspace.lab, spec.table, base)
    inputs = {"table": table.digest, "statistics": STATISTICS}
    if spec.features.encoder is not None:
        if is_elsewhere(spec.features.encoder):
            raise LabError(
                f"features.encoder {spec.features.encoder} is a place on this machine, and a router tells its readers "
                "where its encoder is; put the folder into the lab and name it relative to it, or install a package"
            )
        inputs["encoder"] = open_encoder(spec.features.encoder).digest
    with workspace.open_run(spec, inputs) as run:
        if run.done:
            return find_staged(run)
        started = time.perf_counter()
        raw = _read(workspace, spec, table)
        folds = int(evaluation_folds(table, spec).max()) + 1
        with workspace.progress.stage(f"{folds} folds and all of {len(table)} items", folds + 1, "routers") as p:
            scored, trained = score_out_of_fold(table, raw, spec, lambda done: p.update(done, None, 0.0, 0.0))
        results = summarise(
            scored,
            spec,
            name=spec.name,
            mode=trained.router.mode,
            router_cost=measure_router(trained.router, table),
            warnings=warnings,
            seconds=time.perf_counter() - started,
        )
        save_report(results.model_copy(update={"licence": spec.licence}), run.path)
        candidate = stage_artifact(run, _artifact(spec, table, trained.router, run).fields(), trained.router.tensors())
        run.finish({"candidate": candidate.digest, "metrics": _headline(results)})
        return candidate


def _read(workspace: Workspace, spec: QuestionRouterRun, table: ItemTable) -> RawFeatures:
    """What a router may look at; with progress where an encoder reads, for that takes minutes."""
    if spec.features.encoder is None or table.text_N is None:
        return raw_features(table, spec.features)
    with workspace.progress.stage(f"sentence vectors of {len(table)} items", len(table), "items") as shown:
        return raw_features(table, spec.features, lambda done: shown.update(done, None, 0.0, 0.0))


def find_table(lab: Lab, table: str, base: Path) -> tuple[ItemTable, list[str]]:
    """The table that a config means: a file by path, or a name in `configs/outcomes/`."""
    beside = base / table
    if beside.is_file():
        return read_table(beside)
    return read_table(lab.find_config(table if "/" in table else f"outcomes/{table}"))


def load_question_router(registry: Registry, digest: str) -> QuestionRouter:
    """A question router from a registry or from the `candidate/` folder of its run."""
    manifest = registry.manifest(digest)
    published = read_router(manifest, digest[:19])
    if not isinstance(published, QuestionRouterArtifact):
        raise LabError(f"{digest[:19]}: not a question router; moe-lab train makes one from kind question_router")
    return QuestionRouter.rebuild(published.router, registry.tensors(manifest))


def save_report(results: RouteResults, folder: Path) -> Path:
    """Writes the results and the page that shows them; returns the page."""
    write_json(folder / RESULTS_FILE, results.model_dump(mode="json"))
    return write_reports(QUESTION_REPORTS, results, folder)["report"]


def finished_results(folder: Path) -> RouteResults:
    """The results in the run folder of a question router."""
    try:
        text = (folder / RESULTS_FILE).read_text(encoding="utf-8")
        saved = json.loads(text)
        if isinstance(saved, dict) and saved.get("format") == 1:
            raise Refused(
                f"{folder}: these results are of an earlier version, which took gains on the concave hull and so found "
                "some in noise; train the config again: moe-lab train CONFIG"
            )
        return RouteResults.model_validate_json(text)
    except FileNotFoundError as error:
        if not (folder / "result.json").is_file() or not folder.name.startswith("question_join-"):
            raise NotFound(_unfinished(folder)) from error
        raise NotFound(
            f"{folder}: a candidate joined here without a report, which needs questions with the outcomes of all "
            "candidates; name such a table as measured_on in its config, and train it again"
        ) from error
    except (OSError, ValueError) as error:
        raise Damaged(_unfinished(folder)) from error


def _unfinished(folder: Path) -> str:
    return (
        f"{folder}: holds no finished question router ({RESULTS_FILE} is missing or broken); "
        "train it first: moe-lab train CONFIG"
    )


def _artifact(spec: QuestionRouterRun, table: ItemTable, router: QuestionRouter, run: Run) -> QuestionRouterArtifact:
    return QuestionRouterArtifact(
        summary=spec.summary,
        licence=spec.licence,
        run=run.fingerprint,
        candidates=tuple(dataclasses.asdict(candidate) for candidate in table.candidates),
        router=router.describe(),
        settings=spec.model_dump(mode="json"),
        table=table.name,
        table_digest=table.digest,
        items=len(table),
        cost_unit=table.cost_unit,
    )


def _headline(results: RouteResults) -> dict[str, float]:
    """What the ledger's result keeps: the main metric of the router and of its baselines."""
    kept = [f for f in results.figures if f.metric in ("APGR", "AIQ", AREA) and f.value is not None]
    return {f"{figure.metric} of {figure.role}": round(float(figure.value or 0.0), 4) for figure in kept}
