"""The composed model: one trunk, many modules in one pool per layer, one router that decides for every token.

Arrays travel as one pytree beside static structure, so that nothing is baked into a compiled program and swapping a
module for another of the same size compiles nothing.

Shape letters: B batch, S sequence, K choices per token, D model width, E modules of the router, C candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_lab.compose.lockfile import Lock, LockedPart
from moe_lab.compose.parts import (
    LoadedModule,
    LoadedTrunk,
    candidate_space,
    load_module,
    load_router,
    load_trunk,
    make_router,
)
from moe_lab.errors import LabError, did_you_mean
from moe_lab.experts.interface import block_multiply_adds
from moe_lab.lab import Lab
from moe_lab.nn.expert_ffn import require_backend
from moe_lab.nn.pool import Pool, Routing, make_pool
from moe_lab.nn.trunk import Experts, Trunk, greedy_hits, token_losses
from moe_lab.registry import Registry
from moe_lab.routing.router import Features, Router, normalised
from moe_lab.routing.space import CandidateSpace


class TokenBatch(Protocol):
    """What the model needs of a batch."""

    @property
    def tokens(self) -> Any: ...
    @property
    def targets(self) -> Any: ...
    @property
    def segment_ids(self) -> Any: ...
    @property
    def positions(self) -> Any: ...


class ModelArrays(NamedTuple):
    """Every number of a composed model."""

    trunk: nnx.State
    router: nnx.State
    pools: dict[int, Pool]
    pool_index_E: jax.Array  # int32, where the router's modules lie in the pool
    present_E: jax.Array  # bool, which of the router's modules are composed


class Decision(NamedTuple):
    """What a composed pass did, per token. `expert` counts the router's modules, `blocks` all routed layers."""

    loss_BS: jax.Array  # float32 nats
    hit_BS: jax.Array  # bool, greedy decoding gives the target
    expert_BSK: jax.Array  # int32
    width_BSK: jax.Array  # int32 blocks asked for per layer
    blocks_BS: jax.Array  # int32 blocks run, summed over choices and layers


UNCAPPED = -1
"""A width cap that leaves the router's widths alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComposedModel:
    """A trunk with its modules and a router. `modules` may lack some that the router knows."""

    trunk: LoadedTrunk
    modules: tuple[LoadedModule, ...]
    router: Router
    price: float = 0.0
    backend: str = "auto"

    @property
    def space(self) -> CandidateSpace:
        """What the router was made to choose from."""
        return self.router.space

    @property
    def multiply_adds_per_block(self) -> int:
        return block_multiply_adds(self.trunk.spec.d_model, self.trunk.spec.block)

    @property
    def router_multiply_adds(self) -> int:
        """The router's own cost per token: one multiply-add per entry of its matrices."""
        flat = nnx.to_flat_state(nnx.state(self.router, nnx.Param))
        return sum(matrix.size for path, matrix in flat if path[-1] == "kernel")

    def arrays(self) -> ModelArrays:
        """The pytree to hand to the methods below."""
        layers = self.trunk.spec.routed_layers
        pools = {layer: make_pool([module.weights[layer] for module in self.modules]) for layer in layers}
        names = [module.name for module in self.modules]
        present = [name in names for name in self.space.modules]
        index = [names.index(name) if name in names else 0 for name in self.space.modules]
        return ModelArrays(
            trunk=self.trunk.state,
            router=nnx.state(self.router),
            pools=pools,
            pool_index_E=jnp.asarray(index, jnp.int32),
            present_E=jnp.asarray(present),
        )

    def available(self, without: Sequence[str] = ()) -> np.ndarray:
        """bool[E]: the router's modules less those opted out; a name that is not composed is an error."""
        names = [module.name for module in self.modules]
        for name in without:
            if name not in names:
                raise LabError(f'cannot leave out "{name}": it is not in the composition.{did_you_mean(name, names)}')
        return np.array([name not in without for name in self.space.modules])

    @cached_property
    def candidates(self) -> CandidateSpace:
        """What is composed: the modules here, whether the router knows more or not."""
        return candidate_space(self.modules)

    def run_candidates(
        self, arrays: ModelArrays, batch: TokenBatch, hidden_BSD: jax.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every composed candidate alone on the whole batch: losses in nats and greedy hits, both [B, S, C]."""
        run = partial(_run_fixed, self.trunk.graph, self.backend, arrays, _arrays(batch), hidden_BSD)
        space = self.candidates
        results = [
            run(jnp.int32(expert), jnp.int32(blocks))
            for expert, blocks in zip(space.module_C, space.blocks_C, strict=True)
        ]
        losses, hits = zip(*results, strict=True)
        return np.stack([*map(np.asarray, losses)], axis=-1), np.stack([*map(np.asarray, hits)], axis=-1)

    def enter(self, arrays: ModelArrays, batch: TokenBatch) -> jax.Array:
        """The trunk's state in front of the first routed layer: [B, S, D]."""
        return _enter(self.trunk.graph, arrays, _arrays(batch))

    def run(
        self,
        arrays: ModelArrays,
        batch: TokenBatch,
        hidden_BSD: jax.Array,
        *,
        available_E: np.ndarray,
        price: float | None = None,
        width_cap: int = UNCAPPED,
        outcomes_BSC: np.ndarray | None = None,
    ) -> Decision:
        """Routes and runs one batch.

        Args:
            arrays: from `arrays()`.
            batch: packed tokens.
            hidden_BSD: from `enter`.
            available_E: from `available()`.
            price: overrides the composition's price.
            width_cap: runs every routed token at this many blocks (a uniform width), unless `UNCAPPED`.
            outcomes_BSC: measured losses, for routers that look them up.
        """
        assert self.router.needs_outcomes <= (outcomes_BSC is not None), "this router needs outcomes"
        return _composed(
            (self.trunk.graph, nnx.graphdef(self.router), self.backend),
            arrays,
            _arrays(batch),
            hidden_BSD,
            jnp.asarray(available_E),
            jnp.float32(self.price if price is None else price),
            jnp.int32(width_cap),
            outcomes_BSC,
        )


def _arrays(batch: TokenBatch) -> tuple[Any, Any, Any, Any]:
    return batch.tokens, batch.targets, batch.segment_ids, batch.positions


@partial(jax.jit, static_argnums=0)
def _enter(graph: nnx.GraphDef, arrays: ModelArrays, batch: tuple) -> jax.Array:
    tokens, _, segment_ids, positions = batch
    return nnx.merge(graph, arrays.trunk).enter(tokens, segment_ids, positions)


@partial(jax.jit, static_argnums=(0, 1))
def _run_fixed(
    graph: nnx.GraphDef,
    backend: str,
    arrays: ModelArrays,
    batch: tuple,
    hidden_BSD: jax.Array,
    expert: jax.Array,
    blocks: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    _, targets, segment_ids, positions = batch
    trunk = nnx.merge(graph, arrays.trunk)
    shape = (*segment_ids.shape, 1)
    routing = Routing(jnp.full(shape, expert), jnp.full(shape, blocks), jnp.ones(shape, jnp.float32))
    x_BSD = trunk.routed(hidden_BSD, segment_ids, positions, Experts(arrays.pools, routing, backend))
    logits = trunk.head(x_BSD)
    return token_losses(logits, targets), greedy_hits(logits, targets)


def compose_pass(
    trunk: Trunk,
    router: Router,
    arrays: ModelArrays,
    batch: tuple,
    features: Features,
    hidden_BSD: jax.Array,
    width_cap: jax.Array,
    backend: str,
) -> tuple[jax.Array, Routing, jax.Array]:
    """Routes by `features`, runs the experts: logits, the routing in the router's terms, blocks run [B, S]."""
    _, _, segment_ids, positions = batch
    routing = router.route(features)
    width = jnp.where((width_cap < 0) | (routing.width == 0), routing.width, width_cap)
    width = jnp.where(features.available_E[routing.expert], width, 0)
    routing = routing._replace(width=width)
    in_pool = routing._replace(expert=arrays.pool_index_E[routing.expert])
    x_BSD = trunk.routed(hidden_BSD, segment_ids, positions, Experts(arrays.pools, in_pool, backend))
    blocks_BS = sum(jnp.minimum(width, pool.count[in_pool.expert]).sum(-1) for pool in arrays.pools.values())
    return trunk.head(x_BSD), routing, jnp.asarray(blocks_BS)


@partial(jax.jit, static_argnums=0)
def _composed(
    static: tuple[nnx.GraphDef, nnx.GraphDef, str],
    arrays: ModelArrays,
    batch: tuple,
    hidden_BSD: jax.Array,
    available_E: jax.Array,
    price: jax.Array,
    width_cap: jax.Array,
    outcomes_BSC: jax.Array | None,
) -> Decision:
    trunk_graph, router_graph, backend = static
    trunk, router = nnx.merge(trunk_graph, arrays.trunk), nnx.merge(router_graph, arrays.router)
    _, targets, segment_ids, _ = batch
    features = Features(normalised(hidden_BSD), segment_ids, available_E & arrays.present_E, price, outcomes_BSC)
    logits, routing, blocks_BS = compose_pass(trunk, router, arrays, batch, features, hidden_BSD, width_cap, backend)
    return Decision(
        token_losses(logits, targets), greedy_hits(logits, targets), routing.expert, routing.width, blocks_BS
    )


def build_model(lock: Lock, registry: Registry, lab: Lab) -> ComposedModel:
    """Loads what a lockfile names, and refuses parts that do not fit together by name and reason."""
    require_backend(lock.backend)
    trunk = load_trunk(registry, lock.trunk)
    modules = tuple(load_module(registry, part) for part in lock.modules)
    for module in modules:
        trunk.interface.require_fit(module.interface, module.part.ref)
    if not modules:
        raise LabError(f"composition {lock.name} has no modules left; keep at least one")
    if isinstance(lock.router, LockedPart):
        router = load_router(registry, lab, lock.router, trunk)
        _require_same_ladders(router.space, modules, lock.router.ref)
    else:
        router = make_router(lab, lock.router, candidate_space(modules), trunk.spec.d_model)
        if router.trains_on is not None:
            raise LabError(
                f"router {lock.router['type']} has to be trained: train it with a config of kind router, publish it, "
                "and name it here as owner/name"
            )
    return ComposedModel(trunk=trunk, modules=modules, router=router, price=lock.price, backend=lock.backend)


def _require_same_ladders(space: CandidateSpace, modules: Sequence[LoadedModule], label: str) -> None:
    known: Mapping[str, tuple[int, ...]] = dict(zip(space.modules, space.widths, strict=True))
    costs: Mapping[str, tuple[int, ...]] = dict(zip(space.modules, space.costs, strict=True))
    composed = candidate_space(modules)
    for module, cost in zip(modules, composed.costs, strict=True):
        if module.name not in known:
            raise LabError(
                f"router {label} does not know module {module.name} (it knows {', '.join(known)}); "
                "train the router again with it"
            )
        if known[module.name] != module.ladder or costs[module.name] != cost:
            raise LabError(
                f"router {label} learned {module.name} with ladder {list(known[module.name])} at costs "
                f"{list(costs[module.name])}, but {module.part.ref} has {list(module.ladder)} at {list(cost)}; "
                "train the router again"
            )
