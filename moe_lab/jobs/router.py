"""Trains a router: on an outcome table in seconds, or through the composed language model's loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from moe_lab.artifacts.router import RouterArtifact
from moe_lab.compose.lockfile import LockedPart, pin
from moe_lab.compose.model import ComposedModel, assemble, routed_layers_on
from moe_lab.compose.parts import (
    LoadedTrunk,
    PublishedModule,
    candidate_space,
    find_module,
    make_router,
    state_tensors,
)
from moe_lab.data import Batch, Corpus, Split, TrainBatches
from moe_lab.errors import LabError
from moe_lab.evaluation.outcomes import complete_outcomes, domain_batches, measure_outcomes
from moe_lab.jobs.candidate import Candidate, stage, staged
from moe_lab.jobs.module import parent
from moe_lab.jobs.objectives import OutcomeObjective, RouterLanguageObjective, fetched
from moe_lab.jobs.spec import Choice, Published, RouterRun, RouterSettings
from moe_lab.jobs.workspace import Workspace, contribution_digest, data_inputs, resolved_choice
from moe_lab.routing.outcomes import FILE, OutcomeTable, load_outcomes, save_outcomes
from moe_lab.routing.router import Router
from moe_lab.routing.space import CandidateSpace
from moe_lab.training import Objective, Run, fit, open_run
from moe_lab.training.processes import is_first

OUTCOMES_FILE = "outcomes.parquet"
MEASURING_TOKENS = 4096
MEASURING_SPLIT: Split = "validation"


def train_router(workspace: Workspace, spec: RouterRun, base: Path) -> Candidate:
    """Trains the router, or returns what an identical run made before."""
    trunk = workspace.trunk(workspace.pin_trunk(spec.trunk))
    parts = [pin(workspace.registry, ref, "module") for ref in spec.modules]
    model = routed_model(workspace, trunk, parts, partial(_fresh_router, workspace, spec, trunk))
    if model.router.trains_on is None:
        name = spec.router["type"]
        raise LabError(f"router {name} learns nothing: write `router: {{type: {name}, ...}}` in the composition")
    corpora = workspace.corpora(spec.domains, base, trunk.tokenizer)
    code = contribution_digest(workspace.lab.get("routers", spec.router["type"]).path)
    inputs = {"trunk": trunk.part.digest, "router code": code, **data_inputs(corpora)}
    inputs |= {f"module/{part.ref}": part.digest for part in parts}
    with workspace.open_run(spec, inputs) as run:
        if run.done:
            return staged(run)
        objective = _objective(workspace, spec, model, corpora)
        result = fit(objective, spec.train, run, progress=workspace.progress)
        tensors = state_tensors(fetched(result.params, workspace.mesh))
        if isinstance(objective, OutcomeObjective):
            tensors |= state_tensors(fetched(objective.frozen, workspace.mesh))
        router = router_artifact(
            spec, spec.router, model, objective, run, RouterSettings(rows=spec.rows, train=spec.train)
        )
        router = dataclasses.replace(router, domains=tuple(corpus.describe() for corpus in corpora))
        candidate = stage(run, router.fields(), tensors)
        run.finish({"candidate": candidate.digest, "metrics": result.metrics})
        return candidate


def router_artifact(
    spec: Published, choice: Choice, model: ComposedModel, objective: Objective, run: Run, settings: RouterSettings
) -> RouterArtifact:
    """What a router's manifest says of every router; its domains and further parents are added by who trained it."""
    trunk, parts = model.trunk.part, [module.part for module in model.modules]
    return RouterArtifact(
        summary=spec.summary,
        licence=spec.licence,
        parents=(parent(trunk, "trunk"), *(parent(part, "module") for part in parts)),
        run=run.fingerprint,
        trunk=trunk.digest,
        space=model.space.to_json(),
        module_digests={part.ref: part.digest for part in parts},
        homes=_homes(model, objective),
        choice=resolved_choice(choice, model.router.config),
        training=settings.model_dump(mode="json"),
    )


def routed_model(
    workspace: Workspace,
    trunk: LoadedTrunk,
    parts: Sequence[LockedPart],
    make: Callable[[CandidateSpace], Router],
) -> ComposedModel:
    """The trunk and some modules under the router that is made for them."""
    modules = tuple(find_module(workspace.registry, part) for part in parts)
    for module in modules:
        trunk.interface.require_fit(module.interface, module.part.ref)
    run_layer = routed_layers_on(workspace.mesh, workspace.transport)
    return assemble(trunk, modules, make(candidate_space(modules)), run_layer=run_layer)


def _fresh_router(workspace: Workspace, spec: RouterRun, trunk: LoadedTrunk, space: CandidateSpace) -> Router:
    return make_router(workspace.lab, spec.router, space, trunk.spec.d_model, spec.train.seed)


def _objective(workspace: Workspace, spec: RouterRun, model: ComposedModel, corpora: Sequence[Corpus]) -> Objective:
    train = spec.train
    if model.router.trains_on == "outcomes":
        table = outcome_table(workspace, model, corpora, spec.rows, train.seq_len).table
        # Whose own text it is may be learned from text that the modules know: no loss of theirs is looked at.
        text = TrainBatches(corpora, None, train.batch_size, train.seq_len, train.seed)
        return OutcomeObjective(model.router, table, train.batch_size, train.seed, model.mesh, text)
    # A router must learn from text that no module has learned, or the modules look better than they are.
    unseen = [
        dataclasses.replace(corpus, splits={**corpus.splits, "train": corpus.splits["validation"]})
        for corpus in corpora
    ]
    batches = TrainBatches(unseen, None, train.batch_size, train.seq_len, train.seed)
    return RouterLanguageObjective(model, batches, train.batch_size * train.seq_len)


def _homes(model: ComposedModel, objective: Objective) -> dict[str, str] | None:
    """Which module's own text each domain is, for routers that can be told the domain."""
    if model.router.takes_hints and isinstance(objective, OutcomeObjective):
        return objective.homes
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredOutcomes:
    """An outcome table, the file that it lies in, and the fingerprint of the run that measured it."""

    table: OutcomeTable
    path: Path
    fingerprint: str
    fresh: bool


def outcome_table(
    workspace: Workspace,
    model: ComposedModel,
    corpora: Sequence[Corpus],
    rows: int,
    seq_len: int,
    known: OutcomeTable | None = None,
) -> MeasuredOutcomes:
    """What every candidate loses on validation text; measured once for the same model and text.

    `known` has what some of the candidates lose on the same rows of some of the domains: that is not measured again.
    """
    run, inputs = _table_run(workspace, model.trunk, model.modules, corpora, rows, seq_len)
    with run:
        path, found = run.path / OUTCOMES_FILE, run.fingerprint
        if run.done:
            return MeasuredOutcomes(table=load_outcomes(path), path=path, fingerprint=found, fresh=False)
        batches = measuring_batches(corpora, rows, seq_len)
        label = f"outcomes of {len(model.candidates)} candidates"
        with workspace.progress.stage(label, len(batches), "batches") as shown:

            def report(done: int, each: float) -> None:
                shown.update(done, None, 1 / each, each)

            if known is None:
                table, _ = measure_outcomes(model, corpora, batches, report)
            else:
                table = complete_outcomes(model, corpora, batches, known, report)
        table = table.counted()
        if is_first():
            save_outcomes(table, path, {"split": MEASURING_SPLIT, **inputs})
        run.finish({"rows": len(table.group_N), "tokens": int(table.mask_NS.sum()), "file": OUTCOMES_FILE})
        return MeasuredOutcomes(table=table, path=path, fingerprint=found, fresh=True)


def find_outcomes(
    workspace: Workspace,
    trunk: LoadedTrunk,
    modules: Sequence[PublishedModule],
    corpora: Sequence[Corpus],
    rows: int,
    seq_len: int,
) -> OutcomeTable | None:
    """The table that `outcome_table` would find; None if it would have to measure it."""
    run, _ = _table_run(workspace, trunk, modules, corpora, rows, seq_len, begin=False)
    return load_outcomes(run.path / OUTCOMES_FILE) if run.done else None


def _table_run(
    workspace: Workspace,
    trunk: LoadedTrunk,
    modules: Sequence[PublishedModule],
    corpora: Sequence[Corpus],
    rows: int,
    seq_len: int,
    begin: bool = True,
) -> tuple[Run, dict[str, str]]:
    """The run that measures a table, and what it is measured on."""
    resolved = {
        "format": FILE.version,
        "rows": rows,
        "seq_len": seq_len,
        "domains": [corpus.name for corpus in corpora],
        "space": candidate_space(modules).to_json(),
    }
    inputs = {"trunk": trunk.part.digest}
    inputs |= {f"module/{module.name}": module.part.digest for module in modules}
    inputs |= data_inputs(corpora)
    name = trunk.part.ref.partition("@")[0]
    return open_run(workspace.lab.runs, "outcomes", name, resolved, inputs, begin=begin), inputs


def measuring_batches(corpora: Sequence[Corpus], rows: int, seq_len: int) -> list[Batch]:
    """The text of an outcome table: rows that no module has learned from, and no report is made of."""
    batch_size = min(rows, max(1, MEASURING_TOKENS // seq_len))
    return domain_batches(corpora, MEASURING_SPLIT, rows, batch_size, seq_len)
