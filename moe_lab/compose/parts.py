"""Loading published trunks, modules and routers: arrays from the registry, code only from the lab."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from moe_lab.artifacts.module import ModuleArtifact
from moe_lab.artifacts.router import RouterArtifact, read_router
from moe_lab.artifacts.tensor_names import layer_names, parameter_name
from moe_lab.artifacts.trunk import TOKENIZER_TENSOR, TrunkArtifact
from moe_lab.compose.kept_states import KeptStates
from moe_lab.compose.lockfile import LockedPart, artifact_name
from moe_lab.data import Tokenizer
from moe_lab.data.spec import ByteTokenizerSpec, TokenizerSpec
from moe_lab.data.tokenizers import ByteTokenizer, HFTokenizer
from moe_lab.errors import Damaged, LabError, Refused
from moe_lab.experts.interface import Interface, blocks_of, rung_cost
from moe_lab.experts.kind import ExpertKind
from moe_lab.experts.weights import ExpertWeights
from moe_lab.lab import Lab
from moe_lab.nn.decoder import abstract_trunk
from moe_lab.nn.layout import ONE_DEVICE
from moe_lab.nn.pool import Blocks
from moe_lab.nn.precision import FLOAT32, Precision, cast_params
from moe_lab.nn.spec import TrunkSpec
from moe_lab.parallel.mesh import GatheredLayout, MeshLayout, trunk_to_mesh
from moe_lab.registry import Registry
from moe_lab.registry.manifest import Manifest
from moe_lab.routing.router import Router
from moe_lab.routing.space import CandidateSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedTrunk:
    """A published trunk in memory, split into what compiles and what flows.

    Attributes:
        ends: ids after which it stops writing, beside the tokenizer's end of a document.
        chat_template: how a conversation is written down for it, if it was taught that.
        graph: for a computation of all of it on one device, or on each; see `graph_on`.
        sharded: on a mesh each device holds a part of it instead of the whole.
        states: where what lies under the first routed layer is kept, if it is.
    """

    part: LockedPart
    spec: TrunkSpec
    tokenizer: Tokenizer
    graph: nnx.GraphDef
    state: nnx.State
    ends: tuple[int, ...] = ()
    chat_template: str | None = None
    sharded: bool = False
    precision: Precision = FLOAT32
    states: KeptStates | None = None

    def enter(self, batch: Any, mesh: Mesh | None, compute: Callable[[], jax.Array]) -> jax.Array:
        """The states in front of the first routed layer, [B, S, D]: kept ones on one device, else computed."""
        if self.states is None or mesh is not None:
            return compute()
        return self.states.of(self.part.digest, batch, self.precision.compute, compute)

    def graph_on(self, mesh: Mesh | None) -> nnx.GraphDef:
        """Its structure for a computation on these devices."""
        return trunk_graph(self.spec, self.precision, mesh)

    def on(self, mesh: Mesh | None) -> nnx.State:
        """Its parameters where a computation on these devices needs them."""
        return trunk_to_mesh(self.state, mesh, self.sharded)

    @property
    def interface(self) -> Interface:
        return Interface.of_trunk(self.part.digest, self.tokenizer.digest, self.spec)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedModule:
    """A published module: what it is. Its blocks stay in the registry until they are read, run by run.

    Attributes:
        artifact: what its manifest says.
    """

    part: LockedPart
    artifact: ModuleArtifact
    layer_blocks: Mapping[int, int]
    registry: Registry
    manifest: Manifest

    @property
    def name(self) -> str:
        """`owner/name`."""
        return artifact_name(self.part.ref)

    @property
    def interface(self) -> Interface:
        return self.artifact.interface

    @property
    def kind(self) -> ExpertKind:
        return self.interface.expert_kind

    @property
    def ladder(self) -> tuple[int, ...]:
        return self.artifact.ladder

    def read(self, layer: int, first: int, count: int) -> Blocks:
        """Blocks `first : first + count` of a layer as numpy, every byte checked; no other block is read."""
        rows = slice(first, first + count)
        try:
            names = layer_names(layer, self.kind.parts)
            blocks: Blocks = self.kind.from_parts([self.registry.tensor(self.manifest, name, rows) for name in names])
            return blocks
        except LabError as error:
            raise type(error)(f"{self.part.ref}: {error}") from error

    @cached_property
    def weights(self) -> ExpertWeights:
        """All blocks, on the default device."""
        return {
            layer: jax.tree.map(jax.numpy.asarray, self.read(layer, 0, blocks))
            for layer, blocks in self.layer_blocks.items()
        }


@functools.cache
def trunk_graph(spec: TrunkSpec, precision: Precision, mesh: Mesh | None) -> nnx.GraphDef:
    """The structure alone, for a computation on these devices."""
    return abstract_trunk(spec, precision, ONE_DEVICE if mesh is None else MeshLayout(mesh=mesh))[0]


def state_tensors(state: nnx.State) -> dict[str, np.ndarray]:
    """Parameters by dotted path, as they are published."""
    flat = nnx.to_flat_state(state)
    return {parameter_name(path): np.asarray(variable[...]) for path, variable in flat}


def state_from_tensors(
    abstract: nnx.State,
    tensors: Mapping[str, np.ndarray],
    label: str,
    place: Callable[[np.ndarray], jax.Array] = jax.numpy.asarray,
) -> nnx.State:
    """Fills a structure with published arrays, one after the other; every parameter exactly once, as declared."""
    flat = dict(nnx.to_flat_state(abstract))
    paths = {parameter_name(path): path for path in flat}
    if set(paths) != set(tensors):
        odd = ", ".join(sorted(set(paths) ^ set(tensors))[:5])
        raise Damaged(f"{label}: its tensors do not match its config (missing or unknown: {odd})")
    filled = {}
    for name, path in paths.items():
        array = tensors[name]
        if array.shape != flat[path].shape:
            raise Damaged(f"{label}: {name} is {array.shape}, its config says {flat[path].shape}")
        filled[path] = flat[path].replace(place(array))
    return nnx.from_flat_state(filled)


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of an artifact but for some, each read when it is asked for and every byte checked.

    What is damaged is named as people know it.
    """

    def __init__(self, registry: Registry, manifest: Manifest, part: LockedPart, but: str | None = None) -> None:
        self._registry, self._manifest, self._part, self._but = registry, manifest, part, but

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._manifest.records if name != self._but)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._registry.mapped_tensor(self._manifest, name)
        except LabError as error:
            raise type(error)(f"{self._part.ref}: {error}") from error


def load_trunk(
    registry: Registry,
    part: LockedPart,
    sharded: bool = False,
    precision: Precision = FLOAT32,
    states: KeptStates | None = None,
    mesh: Mesh | None = None,
) -> LoadedTrunk:
    """Reads a trunk from the registry, every byte checked, and keeps it as the precision says.

    Tensor by tensor: what is stored in another dtype is never there in both as a whole, and of a `sharded` one on a
    `mesh` no device and no process ever holds more than its part and one tensor.
    """
    manifest = registry.manifest(part.digest)
    trunk = TrunkArtifact.of(manifest, part.ref)
    tokenizer = load_own_tokenizer(registry, manifest, part, trunk.tokenizer)
    spread = mesh if sharded else None
    layout = ONE_DEVICE if spread is None else GatheredLayout(mesh=spread)
    graph, abstract = abstract_trunk(trunk.spec, precision, layout)

    def place(array: np.ndarray) -> jax.Array:
        # Where a CPU computes, the array stays where it is, in the registry's files: processes share it.
        kept = cast_params(array if spread is not None else jax.device_put(array, may_alias=True), precision)
        placed: jax.Array = trunk_to_mesh(kept, spread, sharded)
        return placed

    state = state_from_tensors(abstract, _Tensors(registry, manifest, part, TOKENIZER_TENSOR), part.ref, place)
    return LoadedTrunk(
        part=part,
        spec=trunk.spec,
        tokenizer=tokenizer,
        graph=graph,
        state=state,
        ends=trunk.ends,
        chat_template=trunk.chat_template,
        sharded=sharded,
        precision=precision,
        states=states,
    )


def load_own_tokenizer(registry: Registry, manifest: Manifest, part: LockedPart, spec: TokenizerSpec) -> Tokenizer:
    """The tokenizer of a published trunk: our own, or the definition that travels with it."""
    if isinstance(spec, ByteTokenizerSpec):
        return ByteTokenizer()
    definition = _Tensors(registry, manifest, part)[TOKENIZER_TENSOR]
    return HFTokenizer(definition.tobytes(), spec.path, spec.eos, spec.start)


def find_module(registry: Registry, part: LockedPart) -> PublishedModule:
    """Reads what a module is, and checks that its tensors are what its interface says. Reads no block."""
    manifest = registry.manifest(part.digest)
    module = ModuleArtifact.of(manifest, part.ref)
    return PublishedModule(
        part=part,
        artifact=module,
        layer_blocks=_layer_blocks(manifest, module.interface, part.ref),
        registry=registry,
        manifest=manifest,
    )


def _layer_blocks(manifest: Manifest, interface: Interface, label: str) -> dict[int, int]:
    kind = interface.expert_kind
    names = {layer: layer_names(layer, kind.parts) for layer in interface.routed_layers}
    odd = set(manifest.records) ^ {name for layer in names.values() for name in layer}
    if odd:
        raise Damaged(f"{label}: its tensors do not match its routed layers (missing or unknown: {sorted(odd)[0]})")
    wide, block = interface.d_model, interface.block
    counts = {}
    for layer, layer_parts in names.items():
        shapes = {part: manifest.record(name).shape for part, name in zip(kind.parts, layer_parts, strict=True)}
        counts[layer] = kind.count_blocks(shapes)
        if shapes != kind.shapes(counts[layer], wide, block):
            each = kind.block_shapes(wide, block)
            raise Damaged(
                f"{label}: layer {layer} has tensors of shapes {list(shapes.values())}; with d_model {wide} and block "
                f"{block} they should be {_spell(each)}"
            )
    return counts


def _spell(shapes: Sequence[tuple[int, ...]]) -> str:
    """`[N, 64, 16] twice and [N, 16, 64]`: equal neighbours once."""
    runs = [(shape, len(list(same))) for shape, same in itertools.groupby(shapes)]
    times = {1: "", 2: " twice"}
    return " and ".join(
        f"[N, {', '.join(map(str, shape))}]{times.get(count, f' {count} times')}" for shape, count in runs
    )


def candidate_space(modules: Sequence[PublishedModule]) -> CandidateSpace:
    """What a router may choose from: every module at every rung of its ladder."""
    return CandidateSpace(
        modules=tuple(module.name for module in modules),
        widths=tuple(module.ladder for module in modules),
        blocks=tuple(tuple(blocks_of(w, m.interface.block) for w in m.ladder) for m in modules),
        costs=tuple(tuple(rung_cost(m.interface, m.layer_blocks, width) for width in m.ladder) for m in modules),
    )


def make_router(lab: Lab, choice: Mapping[str, Any], space: CandidateSpace, d_model: int, seed: int = 0) -> Router:
    """Builds a fresh router of the contributed class that `type:` names."""
    cls, config = lab.choose("routers", choice, Router)
    return cls(config, space, d_model, rngs=nnx.Rngs(seed))


def read_token_router(registry: Registry, part: LockedPart) -> RouterArtifact:
    """What the manifest of a router says, which must be one of tokens."""
    published = read_router(registry.manifest(part.digest), part.ref)
    if not isinstance(published, RouterArtifact):
        raise LabError(
            f"{part.ref} sends whole questions to models of an outcome table; a composition needs one of kind router"
        )
    return published


def load_router(registry: Registry, lab: Lab, part: LockedPart, trunk: LoadedTrunk) -> Router:
    """Builds a published router: its class from the lab, its numbers from the registry."""
    published = read_token_router(registry, part)
    if published.trunk != trunk.part.digest:
        raise Refused(f"{part.ref} was trained for another trunk than {trunk.part.ref}; train it for this one")
    space = CandidateSpace.from_json(published.space)
    router = make_router(lab, published.choice, space, trunk.spec.d_model)
    graph, state = nnx.split(router)
    if not jax.tree.leaves(state):
        return router
    return nnx.merge(
        graph, state_from_tensors(state, _Tensors(registry, registry.manifest(part.digest), part), part.ref)
    )


def router_homes(registry: Registry, part: LockedPart) -> dict[str, str]:
    """The domains that a published router has met, each with the module whose own text it is; hints are made of it."""
    return dict(read_token_router(registry, part).homes or {})
