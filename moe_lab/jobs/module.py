"""Trains an expert module beside its frozen trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_lab.compose.lockfile import LockedPart
from moe_lab.compose.parts import LoadedTrunk
from moe_lab.config import canonical_json
from moe_lab.data import Corpus, TrainBatches
from moe_lab.errors import Damaged, LabError, Refused
from moe_lab.experts.interface import Interface, declared_cost, require_ladder
from moe_lab.experts.weights import ExpertWeights, count_parameters, init_expert, to_tensors
from moe_lab.jobs.candidate import Candidate, stage, staged
from moe_lab.jobs.claims import module_claims
from moe_lab.jobs.objectives import ModuleObjective, fetched
from moe_lab.jobs.spec import ModuleSpec, Published
from moe_lab.jobs.workspace import Workspace, data_inputs
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


def train_module(workspace: Workspace, spec: ModuleSpec, base: Path) -> Candidate:
    """Trains the module, or returns what an identical run made before."""
    trunk = workspace.trunk(workspace.pin_trunk(spec.trunk))
    widths = layer_widths(spec, trunk.interface)
    require_ladder(spec.ladder, spec.widest, trunk.spec.block, spec.name)
    corpus = workspace.corpus(workspace.domain(spec.data, base), trunk.tokenizer)
    inputs = {"trunk": trunk.part.digest, **data_inputs([corpus])}
    with workspace.open_run(spec, inputs) as run:
        if run.done:
            return staged(run)
        train = spec.train
        objective = ModuleObjective(
            trunk,
            lambda key: init_expert(key, trunk.interface, widths),
            spec.ladder,
            spec.widest_share,
            TrainBatches([corpus], None, train.batch_size, train.seq_len, train.seed),
            train.batch_size * train.seq_len,
            workspace.mesh,
        )
        weights = fetched(fit(objective, train, run, progress=workspace.progress).params, workspace.mesh)
        claims = module_claims(trunk, weights, spec.ladder, corpus, spec.heldout_rows, train.seq_len)
        fields = module_fields(
            spec, trunk, weights, spec.ladder, corpus, run, claims, parents=[parent(trunk.part, "trunk")]
        )
        candidate = stage_module(run, fields, weights)
        run.finish({"candidate": candidate.digest, "parameters": count_parameters(weights), "claims": claims})
        return candidate


def parent(part: LockedPart, relation: str) -> dict[str, str]:
    """One entry of a manifest's lineage."""
    return {"ref": part.ref, "digest": part.digest, "relation": relation}


def trunk_of(manifest: Mapping[str, Any]) -> LockedPart:
    """The trunk that a module was trained beside, by its lineage."""
    for entry in manifest["lineage"]["parents"]:
        if entry["relation"] == "trunk":
            return LockedPart(ref=entry["ref"], digest=entry["digest"])
    raise Damaged("the manifest's lineage names no trunk; train the module again")


def module_fields(
    spec: Published,
    trunk: LoadedTrunk,
    weights: ExpertWeights,
    ladder: Sequence[int],
    corpus: Corpus,
    run: Run,
    claims: list[dict[str, Any]],
    *,
    parents: list[dict[str, str]],
    method: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a module, trained or shrunk, but for its tensors."""
    blocks = {layer: part.num_blocks for layer, part in weights.items()}
    lineage = {"parents": parents, "run": run.fingerprint, "data": [corpus.digest]}
    return {
        "kind": "module",
        "summary": spec.summary,
        "licence": spec.licence,
        "interface": trunk.interface.to_json(),
        "ladder": list(ladder),
        "cost": declared_cost(trunk.interface, blocks, ladder),
        "lineage": lineage | ({"method": dict(method)} if method else {}),
        "data": {"domains": [corpus.describe()]},
        "claims": claims,
        "config": {spec.__class__.__name__: canonical_json(spec.model_dump(mode="json"))},
    }


def stage_module(run: Run, fields: Mapping[str, Any], weights: ExpertWeights) -> Candidate:
    """Every tensor of a module is cut along its blocks, so that a narrower width reads a prefix."""
    tensors = to_tensors(weights)
    return stage(run, fields, tensors, set(tensors))
