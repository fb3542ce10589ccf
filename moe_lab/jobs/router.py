"""Trains a router: on an outcome table in seconds, or through the composed language model's loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from moe_lab.compose.lockfile import LockedPart, pin
from moe_lab.compose.model import ComposedModel, assemble, routed_layers_on
from moe_lab.compose.parts import LoadedTrunk, candidate_space, find_module, make_router, state_tensors
from moe_lab.config import canonical_json
from moe_lab.data import Corpus, TrainBatches
from moe_lab.errors import LabError
from moe_lab.evaluation.outcomes import domain_batches, measure_outcomes
from moe_lab.jobs.candidate import Candidate, stage, staged
from moe_lab.jobs.module import parent
from moe_lab.jobs.objectives import OutcomeObjective, RouterLanguageObjective, fetched
from moe_lab.jobs.spec import RouterRun
from moe_lab.jobs.workspace import Workspace, contribution_digest, data_inputs, resolved_choice
from moe_lab.routing.outcomes import OutcomeTable, load_outcomes, save_outcomes
from moe_lab.training import Objective, fit, open_run
from moe_lab.training.processes import is_first

OUTCOMES_FILE = "outcomes.parquet"
MEASURING_TOKENS = 4096


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
        params = fetched(result.params, workspace.mesh)
        fields = {
            "kind": "router",
            "summary": spec.summary,
            "licence": spec.licence,
            "interface": {"trunk": trunk.part.digest, "space": model.space.to_json()},
            "config": {"router": canonical_json(resolved_choice(spec.router, model.router.config))},
            "data": {"domains": [corpus.describe() for corpus in corpora]},
            "lineage": {
                "parents": [parent(trunk.part, "trunk"), *(parent(part, "module") for part in parts)],
                "run": run.fingerprint,
            },
            "claims": [],
        }
        candidate = stage(run, fields, state_tensors(params))
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
        table = outcome_table(workspace, model, corpora, spec.rows, train.seq_len)
        return OutcomeObjective(model.router, table, train.batch_size, train.seed, model.mesh)
    # A router must learn from text that no module has learned, or the modules look better than they are.
    unseen = [
        dataclasses.replace(corpus, splits={**corpus.splits, "train": corpus.splits["validation"]})
        for corpus in corpora
    ]
    batches = TrainBatches(unseen, None, train.batch_size, train.seq_len, train.seed)
    return RouterLanguageObjective(model, batches, train.batch_size * train.seq_len)


def outcome_table(
    workspace: Workspace, model: ComposedModel, corpora: Sequence[Corpus], rows: int, seq_len: int
) -> OutcomeTable:
    """What every candidate loses on validation text; measured once for the same model and text."""
    domains = [corpus.name for corpus in corpora]
    resolved = {"rows": rows, "seq_len": seq_len, "domains": domains, "space": model.candidates.to_json()}
    inputs = {"trunk": model.trunk.part.digest}
    inputs |= {f"module/{module.name}": module.part.digest for module in model.modules}
    inputs |= data_inputs(corpora)
    name = model.trunk.part.ref.partition("@")[0]
    with open_run(workspace.lab.runs, "outcomes", name, resolved, inputs) as run:
        path = run.path / OUTCOMES_FILE
        if run.done:
            return load_outcomes(path)
        batches = domain_batches(corpora, "validation", rows, min(rows, max(1, MEASURING_TOKENS // seq_len)), seq_len)
        label = f"outcomes of {len(model.space)} candidates"
        with workspace.progress.stage(label, len(batches), "batches") as shown:
            table, _ = measure_outcomes(
                model, corpora, batches, lambda done, each: shown.update(done, None, 1 / each, each)
            )
        table = table.counted()
        if is_first():
            save_outcomes(table, path, {"split": "validation", **inputs})
        run.finish({"rows": len(table.group_N), "tokens": int(table.mask_NS.sum()), "file": OUTCOMES_FILE})
        return table
