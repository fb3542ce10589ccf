"""Trains a router: on an outcome table in seconds, or through the composed language model's loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from moe_lab.artifacts.router import RouterArtifact
from moe_lab.compose.build import assemble, routed_layers_on, shared_kind
from moe_lab.compose.lockfile import LockedPart, pin
from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import (
    LoadedTrunk,
    candidate_space,
    find_module,
    make_router,
    state_tensors,
)
from moe_lab.data import Corpus, TrainBatches
from moe_lab.errors import LabError
from moe_lab.jobs.candidate import StagedArtifact, find_staged, stage_artifact
from moe_lab.jobs.objectives import OutcomeObjective, RouterLanguageObjective, params_to_host
from moe_lab.jobs.outcome_table import outcome_table
from moe_lab.jobs.spec import ContributionConfig, Publishable, RouterRun, RouterSettings
from moe_lab.jobs.workspace import Workspace, contribution_digest, data_inputs, resolved_choice
from moe_lab.routing.router import Router
from moe_lab.routing.space import CandidateSpace
from moe_lab.training import Objective, Run, fit


def train_router(workspace: Workspace, spec: RouterRun, base: Path) -> StagedArtifact:
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
            return find_staged(run)
        objective = _objective(workspace, spec, model, corpora)
        result = fit(objective, spec.train, run, progress=workspace.progress)
        tensors = state_tensors(params_to_host(result.params, workspace.mesh))
        if isinstance(objective, OutcomeObjective):
            tensors |= state_tensors(params_to_host(objective.frozen, workspace.mesh))
        router = router_artifact(
            spec, spec.router, model, objective, run, RouterSettings(rows=spec.rows, train=spec.train)
        )
        router = dataclasses.replace(router, domains=tuple(corpus.describe() for corpus in corpora))
        candidate = stage_artifact(run, router.fields(), tensors)
        run.finish({"candidate": candidate.digest, "metrics": result.metrics})
        return candidate


def router_artifact(
    spec: Publishable,
    choice: ContributionConfig,
    model: ComposedModel,
    objective: Objective,
    run: Run,
    settings: RouterSettings,
) -> RouterArtifact:
    """What a router's manifest says of every router; its domains and further parents are added by who trained it."""
    trunk, parts = model.trunk.part, [module.part for module in model.modules]
    return RouterArtifact(
        summary=spec.summary,
        licence=spec.licence,
        parents=(trunk.as_parent("trunk"), *(part.as_parent("module") for part in parts)),
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
    run_layer = routed_layers_on(shared_kind(modules), workspace.mesh, workspace.transport)
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
