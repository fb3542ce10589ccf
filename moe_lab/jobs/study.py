"""Runs a study: its configs one after the other, publishing what they make, skipping what is already done."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_lab.config import load_config
from moe_lab.errors import LabError
from moe_lab.jobs.compose import compose
from moe_lab.jobs.evaluate import Evaluated, evaluate
from moe_lab.jobs.publish import publish_checked
from moe_lab.jobs.spec import StudySpec
from moe_lab.jobs.train import TRAININGS, train_spec
from moe_lab.jobs.trunk_import import import_trunk
from moe_lab.jobs.workspace import Workspace


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """One row of the closing table."""

    stage: str
    kind: str
    outcome: str
    seconds: float
    skipped: bool
    evaluated: Evaluated | None = None


def run_study(
    workspace: Workspace, spec: StudySpec, base: Path, announce: Callable[[int, int, str, str], None]
) -> list[StageRecord]:
    """Runs all stages; `announce(number, of, kind, config)` is called before each."""
    records = []
    loaded = [(stage, *_load_stage(workspace, stage, base)) for stage in spec.stages]
    for number, (stage, config, stage_spec) in enumerate(loaded, start=1):
        announce(number, len(spec.stages), stage_spec.kind, stage)
        started = time.perf_counter()
        outcome, skipped, evaluated = _run_stage(workspace, stage_spec, config)
        seconds = time.perf_counter() - started
        records.append(StageRecord(stage, stage_spec.kind, outcome, seconds, skipped, evaluated))
    return records


def _load_stage(workspace: Workspace, stage: str, base: Path) -> tuple[Path, Any]:
    config = base / stage if (base / stage).is_file() else workspace.lab.find_config(stage)
    spec: Any = load_config(config)
    if spec.kind not in (*TRAININGS, "import", "composition", "evaluation"):
        raise LabError(f"{config}: kind {spec.kind} cannot be a stage of a study")
    return config, spec


def _run_stage(workspace: Workspace, spec: Any, config: Path) -> tuple[str, bool, Evaluated | None]:
    base = config.parent.absolute()
    if spec.kind in TRAININGS:
        candidate = train_spec(workspace, spec, base)
        part, created = publish_checked(workspace, candidate, spec, base)
        return part.ref, not created, None
    if spec.kind == "import":
        imported = import_trunk(workspace, spec, base)
        return imported.part.ref, not imported.created, None
    if spec.kind == "composition":
        _, path = compose(workspace, config)
        return str(path), False, None
    evaluated = evaluate(workspace, spec, base)
    return str(evaluated.report), not evaluated.fresh, evaluated
