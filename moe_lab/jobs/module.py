"""Trains an expert module beside its frozen trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_lab.artifacts.artifact import Claim
from moe_lab.artifacts.module import ModuleArtifact
from moe_lab.artifacts.weights import to_tensors
from moe_lab.data import Corpus, TrainBatches
from moe_lab.errors import LabError, Refused
from moe_lab.experts.interface import Interface, declared_cost, require_ladder
from moe_lab.experts.weights import ExpertWeights, count_parameters, init_expert
from moe_lab.jobs.candidate import StagedArtifact, find_staged, stage_artifact
from moe_lab.jobs.claims import module_claims
from moe_lab.jobs.objectives import ModuleObjective, params_to_host
from moe_lab.jobs.spec import ModuleSpec, Publishable
from moe_lab.jobs.workspace import Workspace, data_inputs
from moe_lab.registry.manifest import Parent
from moe_lab.training import Run, fit


def layer_widths(spec: ModuleSpec, interface: Interface) -> dict[int, int]:
    """Hidden units per routed layer of the trunk."""
    if not interface.routed_layers:
        raise Refused(f"{spec.name}: trunk {spec.trunk} has no routed_layers, so no module can work in it")
    if isinstance(spec.width, int):
        return dict.fromkeys(interface.routed_layers, spec.width)
    if set(spec.width) != set(interface.routed_layers):
        raise LabError(
            f"{spec.name}: width names layers {sorted(spec.width)}, but the trunk's routed layers are "
            f"{list(interface.routed_layers)}; give each of them a width"
        )
    return dict(spec.width)


def train_module(workspace: Workspace, spec: ModuleSpec, base: Path) -> StagedArtifact:
    """Trains the module, or returns what an identical run made before."""
    trunk = workspace.trunk(workspace.pin_trunk(spec.trunk), spec.precision)
    interface = trunk.interface.of_kind(spec.expert_kind)
    kind = interface.expert_kind
    widths = layer_widths(spec, interface)
    require_ladder(spec.ladder, spec.widest, trunk.spec.block, spec.name)
    corpus = workspace.corpus(workspace.domain(spec.data, base), trunk.tokenizer)
    inputs = {"trunk": trunk.part.digest, **data_inputs([corpus])}
    with workspace.open_run(spec, inputs) as run:
        if run.done:
            return find_staged(run)
        train = spec.train
        objective = ModuleObjective(
            trunk,
            kind,
            lambda key: init_expert(key, interface, widths),
            spec.ladder,
            spec.widest_share,
            TrainBatches([corpus], None, train.batch_size, train.seq_len, train.seed),
            train.batch_size * train.seq_len,
            workspace.mesh,
        )
        weights = params_to_host(fit(objective, train, run, progress=workspace.progress).params, workspace.mesh)
        claims = module_claims(trunk, weights, kind, spec.ladder, corpus, spec.heldout_rows, train.seq_len)
        module = module_artifact(
            spec, interface, weights, spec.ladder, corpus, run, claims, parents=[trunk.part.as_parent("trunk")]
        )
        candidate = stage_module(run, module, weights)
        run.finish({"candidate": candidate.digest, "parameters": count_parameters(weights), "claims": claims})
        return candidate


def module_artifact(
    spec: Publishable,
    interface: Interface,
    weights: ExpertWeights,
    ladder: Sequence[int],
    corpus: Corpus,
    run: Run,
    claims: Sequence[Claim],
    *,
    parents: Sequence[Parent],
    method: Mapping[str, Any] | None = None,
) -> ModuleArtifact:
    """What the manifest of a module says, trained or shrunk."""
    blocks = {layer: part.num_blocks for layer, part in weights.items()}
    return ModuleArtifact(
        summary=spec.summary,
        licence=spec.licence,
        parents=tuple(parents),
        run=run.fingerprint,
        claims=tuple(claims),
        interface=interface,
        ladder=tuple(ladder),
        cost=declared_cost(interface, blocks, ladder),
        domains=(corpus.describe(),),
        texts=(corpus.digest,),
        method=method,
        made_with={type(spec).__name__: spec.model_dump(mode="json")},
    )


def stage_module(run: Run, module: ModuleArtifact, weights: ExpertWeights) -> StagedArtifact:
    """Every tensor of a module is cut along its blocks, so that a narrower width reads a prefix."""
    tensors = to_tensors(weights, module.interface.expert_kind)
    return stage_artifact(run, module.fields(), tensors, set(tensors))
