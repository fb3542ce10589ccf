"""Evaluates a composition: results.json, report.html and a picture, once for the same model, text and settings."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from moe_lab.compose.build import with_router
from moe_lab.compose.lockfile import Lock, LockedPart, artifact_name, pin
from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import make_router, read_token_router
from moe_lab.data import Corpus
from moe_lab.errors import LabError
from moe_lab.evaluation.evaluate import Evaluation, Settings, decision_outcomes
from moe_lab.evaluation.outcomes import domain_batches, measure_outcomes
from moe_lab.evaluation.passes import HeldOut
from moe_lab.evaluation.results import (
    Learned,
    ModuleEntry,
    ParentEntry,
    Results,
    RouterEntry,
    TrunkEntry,
    load_results,
    save_results,
)
from moe_lab.evaluation.spec import EvaluationSpec
from moe_lab.files import write_json
from moe_lab.jobs.outcome_table import outcome_table
from moe_lab.jobs.workspace import Workspace, contribution_digest, data_inputs
from moe_lab.reports.written import EVALUATION_REPORTS, write_reports
from moe_lab.training import Run, open_run
from moe_lab.training.processes import is_first


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Where an evaluation lies."""

    folder: Path
    fresh: bool

    @property
    def results(self) -> Results:
        return load_results(self.folder / "results.json")

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def evaluate(workspace: Workspace, spec: EvaluationSpec, base: Path) -> Evaluated:
    """Measures everything, or points to where an identical evaluation lies."""
    lock = workspace.find_lock(spec.composition, base)
    model = workspace.load_model(lock)
    # A name that is not composed ends here, before anything is written; so does having nothing left to route to.
    if not any(model.available(spec.without)):
        raise LabError(
            f"composition {lock.name}: all modules are opted out, so there is nothing to route to; keep at least "
            "one (what the bare trunk does is in every evaluation, as `trunk`)"
        )
    if model.mesh is not None:
        read = f"{model.pools.bytes_read:,} bytes of modules read for the devices of this process"
        workspace.progress.note(f"composition {lock.name}: {read}")
    pinned = {ref: pin(workspace.registry, ref, "router") for ref in spec.routers}
    others = {ref: part for ref, part in pinned.items() if part != lock.router}
    corpora = workspace.corpora(spec.domains, base, model.trunk.tokenizer)
    inputs = data_inputs(corpora) | _router_code(workspace, [lock.router, *others.values()])
    inputs |= {f"router/{ref}": part.digest for ref, part in others.items()}
    resolved = {"evaluation": spec.model_dump(mode="json"), "lock": lock.model_dump(mode="json")}
    with open_run(workspace.lab.runs, "evaluation", spec.name, resolved, inputs) as run:
        if run.done:
            return Evaluated(run.path, fresh=False)
        started = time.perf_counter()
        measured = _measure(workspace, spec, lock, model, others, corpora)
        if is_first():
            _write(workspace, run, lock, model, others, measured, time.perf_counter() - started, spec.name)
        run.finish({"results": "results.json", **{report.name: report.file for report in EVALUATION_REPORTS}})
        return Evaluated(run.path, fresh=True)


def _router_code(workspace: Workspace, routers: Sequence[LockedPart | dict[str, Any]]) -> dict[str, str]:
    """Routers are numbers from the registry and code from the lab: a result depends on both."""
    types = set()
    for router in routers:
        if isinstance(router, LockedPart):
            router = dict(read_token_router(workspace.registry, router).choice)
        types.add(router["type"])
    return {
        f"router code/{name}": contribution_digest(workspace.lab.get("routers", name).path) for name in sorted(types)
    }


def _measure(
    workspace: Workspace,
    spec: EvaluationSpec,
    lock: Lock,
    model: ComposedModel,
    others: Mapping[str, LockedPart],
    corpora: Sequence[Corpus],
) -> dict[str, list[Any]]:
    # First, so that a router that does not fit is refused before anything is measured.
    beside = {
        artifact_name(part.ref): with_router(model, part, workspace.registry, workspace.lab, lock.replaced)
        for part in others.values()
    }
    batch_size = min(spec.batch_size, spec.rows)
    batches = domain_batches(corpora, "test", spec.rows, batch_size, spec.seq_len)
    decision = outcome_table(workspace, model, corpora, spec.decision_rows, spec.seq_len).table
    heldout = HeldOut(domains=tuple(corpus.name for corpus in corpora), batches=tuple(batches))
    with workspace.progress.stage("every candidate alone", len(batches), "batches") as shown:
        table, hits = measure_outcomes(
            model, corpora, batches, lambda done, each: shown.update(done, None, 1 / each, each)
        )
    evaluation = Evaluation(
        model=model,
        label=artifact_name(lock.router.ref)
        if isinstance(lock.router, LockedPart)
        else f"router {lock.router['type']}",
        others=beside,
        random=dataclasses.replace(
            model,
            router=make_router(workspace.lab, {"type": "random"}, model.candidates, model.trunk.spec.d_model),
        ),
        heldout=heldout,
        table=table,
        hit_NSC=hits,
        decision=decision_outcomes(decision.without(spec.without)),
        settings=Settings(
            prices=spec.prices,
            without=spec.without,
            sample_tokens=spec.sample_tokens,
            resamples=spec.resamples,
            seed=spec.seed,
        ),
    )
    with workspace.progress.stage("composed", len(evaluation.planned), "passes") as shown:
        clock, done = time.perf_counter(), 0

        def count_pass() -> None:
            nonlocal done
            done += 1
            each = (time.perf_counter() - clock) / done
            shown.update(done, None, 1 / each, each)

        return dataclasses.replace(evaluation, count_pass=count_pass).measure()


def _write(
    workspace: Workspace,
    run: Run,
    lock: Lock,
    model: ComposedModel,
    others: Mapping[str, LockedPart],
    measured: Mapping[str, Any],
    seconds: float,
    name: str,
) -> None:
    routers = [*([lock.router] if isinstance(lock.router, LockedPart) else []), *others.values()]
    results = Results(
        name=name,
        lockfile=lock.model_dump(mode="json"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        elapsed_seconds=round(seconds, 3),
        modules=[_module(workspace, module.part, lock) for module in model.modules],
        trunk=TrunkEntry(
            ref=model.trunk.part.ref,
            digest=model.trunk.part.digest,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(model.trunk.state)),
            licence=_licence(workspace, model.trunk.part),
        ),
        routers=[
            RouterEntry(
                label=artifact_name(part.ref), ref=part.ref, digest=part.digest, licence=_licence(workspace, part)
            )
            for part in routers
        ],
        **measured,
    )
    save_results(results, run.path / "results.json")
    write_reports(EVALUATION_REPORTS, results, run.path)
    write_json(run.path / "composition.lock.json", lock.model_dump(mode="json"))


def _licence(workspace: Workspace, part: LockedPart) -> str | None:
    return workspace.registry.manifest(part.digest).licence


def _module(workspace: Workspace, part: LockedPart, lock: Lock) -> ModuleEntry:
    manifest = workspace.registry.manifest(part.digest)
    learned = lock.replaced.get(artifact_name(part.ref))
    return ModuleEntry(
        ref=part.ref,
        digest=part.digest,
        owner=part.ref.partition("/")[0],
        widths=manifest.ladder,
        parameters=sum(math.prod(record.shape) for record in manifest.records.values()),
        licence=manifest.licence,
        parents=[ParentEntry(**dataclasses.asdict(parent)) for parent in manifest.parents],
        in_place_of=Learned(ref=learned.ref, digest=learned.digest) if learned else None,
    )
