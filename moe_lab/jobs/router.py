"""Trains a router: on an outcome table in seconds, or through the composed language model's loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from moe_lab.compose.lockfile import LockedPart, pin
from moe_lab.compose.model import ComposedModel, assemble, routed_layers_on
from moe_lab.compose.parts import LoadedTrunk, candidate_space, find_module, make_router, state_tensors
from moe_lab.config import canonical_json
from moe_lab.data import Batch, Corpus, Split, TrainBatches
from moe_lab.errors import LabError
from moe_lab.evaluation.outcomes import domain_batches, measure_outcomes
from moe_lab.jobs.candidate import Candidate, stage, staged
from moe_lab.jobs.module import parent
from moe_lab.jobs.objectives import OutcomeObjective, RouterLanguageObjective, fetched
from moe_lab.jobs.spec import RouterRun
from moe_lab.jobs.workspace import Workspace, contribution_digest, data_inputs, resolved_choice
from moe_lab.routing.outcomes import FILE, OutcomeTable, load_outcomes, save_outcomes
from moe_lab.training import Objective, fit, open_run
from moe_lab.training.processes import is_first

OUTCOMES_FILE = "outcomes.parquet"
MEASURING_TOKENS = 4096
MEASURING_SPLIT: Split = "validation"


def train_router(workspace: Workspace, spec: RouterRun, base: Path) -> Candidate:
    """Trains the router, or returns what an identical run made before."""
    trunk = workspace.trunk(workspace.pin_trunk(spec.trunk))
    parts = [pin(workspace.registry, ref, "module") for ref in spec.modules]
    model = _model(workspace, spec, trunk, parts)
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
        fields = {
            "kind": "router",
            "summary": spec.summary,
            "licence": spec.licence,
            "interface": {
                "trunk": trunk.part.digest,
                "space": model.space.to_json(),
                "module_digests": {part.ref: part.digest for part in parts},
                **_homes(model, objective),
            },
            "config": {"router": canonical_json(resolved_choice(spec.router, model.router.config))},
            "data": {"domains": [corpus.describe() for corpus in corpora]},
            "lineage": {
                "parents": [parent(trunk.part, "trunk"), *(parent(part, "module") for part in parts)],
                "run": run.fingerprint,
            },
            "claims": [],
        }
        candidate = stage(run, fields, tensors)
        run.finish({"candidate": candidate.digest, "metrics": result.metrics})
        return candidate


def _model(workspace: Workspace, spec: RouterRun, trunk: LoadedTrunk, parts: Sequence[LockedPart]) -> ComposedModel:
    modules = tuple(find_module(workspace.registry, part) for part in parts)
    for module in modules:
        trunk.interface.require_fit(module.interface, module.part.ref)
    space = candidate_space(modules)
    router = make_router(workspace.lab, spec.router, space, trunk.spec.d_model, spec.train.seed)
    return assemble(trunk, modules, router, run_layer=routed_layers_on(workspace.mesh, workspace.transport))


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


def _homes(model: ComposedModel, objective: Objective) -> dict[str, dict[str, str]]:
    """Which module's own text each domain is, for routers that can be told the domain."""
    if not (model.router.takes_hints and isinstance(objective, OutcomeObjective)):
        return {}
    return {"homes": objective.homes}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredOutcomes:
    """An outcome table, the file that it lies in, and the fingerprint of the run that measured it."""

    table: OutcomeTable
    path: Path
    fingerprint: str
    fresh: bool


def outcome_table(
    workspace: Workspace, model: ComposedModel, corpora: Sequence[Corpus], rows: int, seq_len: int
) -> MeasuredOutcomes:
    """What every candidate loses on validation text; measured once for the same model and text."""
    domains = [corpus.name for corpus in corpora]
    resolved = {
        "format": FILE.version,
        "rows": rows,
        "seq_len": seq_len,
        "domains": domains,
        "space": model.candidates.to_json(),
    }
    inputs = {"trunk": model.trunk.part.digest}
    inputs |= {f"module/{module.name}": module.part.digest for module in model.modules}
    inputs |= data_inputs(corpora)
    name = model.trunk.part.ref.partition("@")[0]
    with open_run(workspace.lab.runs, "outcomes", name, resolved, inputs) as run:
        path, found = run.path / OUTCOMES_FILE, run.fingerprint
        if run.done:
            return MeasuredOutcomes(table=load_outcomes(path), path=path, fingerprint=found, fresh=False)
        batches = measuring_batches(corpora, rows, seq_len)
        label = f"outcomes of {len(model.candidates)} candidates"
        with workspace.progress.stage(label, len(batches), "batches") as shown:
            table, _ = measure_outcomes(
                model, corpora, batches, lambda done, each: shown.update(done, None, 1 / each, each)
            )
        table = table.counted()
        if is_first():
            save_outcomes(table, path, {"split": MEASURING_SPLIT, **inputs})
        run.finish({"rows": len(table.group_N), "tokens": int(table.mask_NS.sum()), "file": OUTCOMES_FILE})
        return MeasuredOutcomes(table=table, path=path, fingerprint=found, fresh=True)


def measuring_batches(corpora: Sequence[Corpus], rows: int, seq_len: int) -> list[Batch]:
    """The text of an outcome table: rows that no module has learned from, and no report is made of."""
    batch_size = min(rows, max(1, MEASURING_TOKENS // seq_len))
    return domain_batches(corpora, MEASURING_SPLIT, rows, batch_size, seq_len)
