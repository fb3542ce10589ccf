"""What is planned: a model's shapes from a config or from manifests, its load, its mesh and its placement.

Shape letters: E modules, R rungs, P devices of the `expert` axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property

import jax
import numpy as np

from moe_lab.artifacts.module import ModuleArtifact, layer_blocks
from moe_lab.artifacts.trunk import TrunkArtifact
from moe_lab.compose.lockfile import Lock, LockedPart, artifact_name, require_learned
from moe_lab.errors import LabError, Refused
from moe_lab.experts.interface import blocks_of
from moe_lab.experts.kinds import DEFAULT, find_kind
from moe_lab.nn.decoder import abstract_trunk
from moe_lab.nn.spec import TrunkSpec
from moe_lab.parallel.placement import Placement, place
from moe_lab.parallel.spec import MeshSpec
from moe_lab.planning.spec import PlanSettings, PlanSpec, ZipfLoad
from moe_lab.planning.topologies import GIB, Topology
from moe_lab.registry import Registry

USUAL_EXPERT_AXIS = 16
WEIGHTS_SHARE = 0.9  # of a device's memory; the rest is for activations


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedModule:
    """One module's shapes.

    Args:
        name: `owner/name`, or a group's name with a number.
        width: full width, in hidden units.
        layer_blocks: blocks in each routed layer.
        rung_use: blocks of each rung, and the share of the module's tokens that run them.
    """

    name: str
    width: int
    layer_blocks: Mapping[int, int]
    rung_use: Mapping[int, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """A model without weights, and how it is to run."""

    name: str
    trunk: TrunkSpec
    modules: tuple[PlannedModule, ...]
    settings: PlanSettings

    @cached_property
    def tokens_E(self) -> np.ndarray:
        """Share of all choices that falls on each module: float64[E]."""
        load = self.settings.load
        if isinstance(load, ZipfLoad):
            share_E = 1 / np.arange(1, len(self.modules) + 1) ** load.zipf
            share_E = np.random.default_rng(load.seed).permutation(share_E)
        else:
            share_E = np.array(load, np.float64)
        if len(share_E) != len(self.modules) or share_E.sum() <= 0:
            raise LabError(f"load has {len(share_E)} shares for {len(self.modules)} modules; give one for each")
        return share_E / share_E.sum()

    @cached_property
    def rungs_ER(self) -> tuple[tuple[int, ...], ...]:
        """Blocks of each module at each rung; short ladders repeat their last rung."""
        longest = max(len(module.rung_use) for module in self.modules)
        ladders = [sorted(module.rung_use) for module in self.modules]
        return tuple((*rungs, *[rungs[-1]] * (longest - len(rungs))) for rungs in ladders)

    def blocks_E(self, layer: int) -> tuple[int, ...]:
        """Blocks of each module in a routed layer."""
        return tuple(module.layer_blocks.get(layer, 0) for module in self.modules)

    def block_load(self, layer: int) -> list[np.ndarray]:
        """Share of all choices that run each block of each module."""
        loads = []
        for module, tokens in zip(self.modules, self.tokens_E, strict=True):
            load = np.zeros(module.layer_blocks.get(layer, 0))
            for blocks, share in module.rung_use.items():
                load[:blocks] += tokens * share
            loads.append(load)
        return loads

    def place(self, devices: int, replicate: float) -> dict[int, Placement]:
        """A placement for each routed layer; layers with the same blocks share one."""
        placed: dict[tuple[int, ...], Placement] = {}
        placements = {}
        for layer in self.trunk.routed_layers:
            blocks_E = self.blocks_E(layer)
            if blocks_E not in placed:
                placed[blocks_E] = place(blocks_E, self.block_load(layer), devices, replicate=replicate)
            placements[layer] = placed[blocks_E]
        return placements

    @property
    def block_bytes(self) -> int:
        """What a block takes for as long as the step runs: weights, and in training Adam's moments and the gradient."""
        item = 16 if self.settings.train else 4 if self.settings.dtype == "float32" else 2
        return find_kind(DEFAULT).block_parameters(self.trunk.d_model, self.trunk.block) * item

    @property
    def pool_bytes(self) -> int:
        """All blocks of all layers, each stored once."""
        return self.block_bytes * sum(sum(self.blocks_E(layer)) for layer in self.trunk.routed_layers)

    @cached_property
    def trunk_bytes(self) -> int:
        """The whole trunk."""
        parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_trunk(self.trunk)[1]))
        return parameters * (4 if self.settings.dtype == "float32" else 2)

    def choose_mesh(self, topology: Topology) -> MeshSpec:
        """The mesh that was asked for, or the smallest `expert` axis from the usual one on at which the weights fit."""
        devices = topology.num_devices
        self._require_room(topology)
        mesh = self.settings.mesh
        if mesh is not None:
            if mesh.data * mesh.expert != devices:
                raise LabError(
                    f"mesh data={mesh.data},expert={mesh.expert} has {mesh.data * mesh.expert} devices and "
                    f"{topology.name} has {devices}; choose data and expert so that data * expert = {devices}"
                )
            return mesh
        trunk = self.trunk_bytes // (devices if self.settings.trunk_sharding == "sharded" else 1)
        expert = math.gcd(USUAL_EXPERT_AXIS, devices)
        while self.pool_bytes / expert + trunk > WEIGHTS_SHARE * topology.hbm_bytes and devices % (2 * expert) == 0:
            expert *= 2
        return MeshSpec(data=devices // expert, expert=expert)

    def _require_room(self, topology: Topology) -> None:
        """Refuses what cannot fit even if every byte lies on one device only."""
        needed, there = self.pool_bytes + self.trunk_bytes, topology.num_devices * topology.hbm_bytes
        if needed > there:
            what = "weights, moments and gradients" if self.settings.train else "weights"
            raise LabError(
                f"{self.name} needs {needed / GIB:.1f} GiB for {what} and {topology.name} has {there / GIB:.1f} GiB in "
                "all, so no placement fits; take more chips, fewer modules or narrower ones"
            )


def model_of_spec(spec: PlanSpec) -> PlannedModel:
    """The model that a `kind: plan` config describes."""
    block = spec.trunk.block
    modules = []
    for group in spec.modules:
        use: dict[int, float] = {}
        for width, share in (group.ladder_use or {group.width: 1.0}).items():
            use[blocks_of(width, block)] = use.get(blocks_of(width, block), 0.0) + share
        layers = dict.fromkeys(spec.trunk.routed_layers, blocks_of(group.width, block))
        for number in range(1, group.count + 1):
            name = f"{group.name}-{number}" if group.count > 1 else group.name
            modules.append(PlannedModule(name=name, width=group.width, layer_blocks=layers, rung_use=use))
    return PlannedModel(name=spec.name, trunk=spec.trunk, modules=tuple(modules), settings=spec)


def model_of_lock(lock: Lock, registry: Registry, settings: PlanSettings) -> PlannedModel:
    """The model of a composition, from manifests alone; every choice is taken to run its module's full width."""
    if isinstance(lock.router, LockedPart):
        require_learned(registry, lock.router, lock.modules, lock.replaced)
    trunk = TrunkArtifact.of(registry.manifest(lock.trunk.digest), lock.trunk.ref).spec
    modules = []
    for part in lock.modules:
        manifest = registry.manifest(part.digest)
        module = ModuleArtifact.of(manifest, part.ref)
        kind = module.interface.expert_kind
        if not kind.runs_on_mesh:
            raise Refused(f"{part.ref}: experts of kind {kind.name} run on one device; leave it out of what is planned")
        rungs = [blocks_of(width, trunk.block) for width in module.ladder]
        use = {rung: float(rung == rungs[-1]) for rung in rungs}
        modules.append(
            PlannedModule(
                name=artifact_name(part.ref),
                width=module.ladder[-1],
                layer_blocks=layer_blocks(manifest.records, kind),
                rung_use=use,
            )
        )
    settings = settings.model_copy(update={"top_k": min(settings.top_k, len(modules))})
    return PlannedModel(name=lock.name, trunk=trunk, modules=tuple(modules), settings=settings)
