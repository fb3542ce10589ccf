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
from jax.sharding import Mesh

from moe_lab.compose.parts import (
    LoadedTrunk,
    PublishedModule,
    candidate_space,
)
from moe_lab.compose.pools import Pools, measured_load
from moe_lab.errors import NotFound, did_you_mean
from moe_lab.nn.cache import Cache
from moe_lab.nn.decoder import Experts, RunLayer, Trunk
from moe_lab.nn.expert_ffn import OneDevice
from moe_lab.nn.losses import greedy_hits, token_losses
from moe_lab.nn.pool import Routing
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import TOKENS, replicate, to_host, to_mesh
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
    pools: dict[int, Any]  # by routed layer: a `Pool`, or a `PlacedPool` on a mesh
    pool_index_E: jax.Array  # int32, where the router's modules lie in the pool
    present_E: jax.Array  # bool, which of the router's modules are composed


class Decision(NamedTuple):
    """What a composed pass did, per token. `expert` counts the router's modules, `blocks` all routed layers."""

    loss_BS: jax.Array  # float32 nats
    hit_BS: jax.Array  # bool, greedy decoding gives the target
    expert_BSK: jax.Array  # int32
    width_BSK: jax.Array  # int32 blocks asked for per layer
    blocks_BS: jax.Array  # int32 blocks run, summed over choices and layers
    dropped: jax.Array  # int32, what limits of the layers had no room for, see `LayerOutput`

    def by_token(self) -> tuple[jax.Array, ...]:
        """All fields that say something of each token."""
        return self[:-1]


UNCAPPED = -1
"""A width cap that leaves the router's widths alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComposedModel:
    """A trunk with its modules and a router. `modules` may lack some that the router knows. Made by `assemble`."""

    trunk: LoadedTrunk
    modules: tuple[PublishedModule, ...]
    router: Router
    pools: Pools
    price: float = 0.0
    homes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # domain -> the module whose own text it is
    run_layer: RunLayer = dataclasses.field(default_factory=OneDevice)

    @property
    def space(self) -> CandidateSpace:
        """What the router was made to choose from."""
        return self.router.space

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the model lies on; None: the default device."""
        return self.run_layer.mesh if isinstance(self.run_layer, ShardedLayer) else None

    @property
    def multiply_adds_per_block(self) -> int:
        return self.modules[0].kind.cost(self.trunk.spec.d_model, self.trunk.spec.block).multiply_adds

    @property
    def trunk_graph(self) -> nnx.GraphDef:
        """The trunk's structure, for the devices that the model lies on."""
        return self.trunk.graph_on(self.mesh)

    @cached_property
    def _trunk_state(self) -> nnx.State:
        return self.trunk.on(self.mesh)

    def arrays(self) -> ModelArrays:
        """The pytree to hand to the methods below."""
        names = [module.name for module in self.modules]
        present = [name in names for name in self.space.modules]
        index = [self.pools.names.index(name) if name in names else 0 for name in self.space.modules]
        small = nnx.state(self.router), np.array(index, np.int32), np.array(present)
        router, pool_index_E, present_E = replicate(small, self.mesh)
        return ModelArrays(
            trunk=self._trunk_state,
            router=router,
            pools=dict(self.pools.layers),
            pool_index_E=pool_index_E,
            present_E=present_E,
        )

    def available(self, without: Sequence[str] = ()) -> np.ndarray:
        """bool[E]: the router's modules less those opted out; a name that is not composed is an error."""
        names = [module.name for module in self.modules]
        for name in without:
            if name not in names:
                raise NotFound(f'cannot leave out "{name}": it is not in the composition.{did_you_mean(name, names)}')
        return np.array([name not in without for name in self.space.modules])

    def hint(self, domains: Sequence[str]) -> np.ndarray:
        """float32[B, E], the log prior of whose own text each row is; zeros for a domain that the router never met."""
        own_BE = [[self.homes.get(domain) == name for name in self.space.modules] for domain in domains]
        known_B1 = [[domain in self.homes] for domain in domains]
        return np.where(own_BE, 0.0, np.where(known_B1, -np.inf, 0.0)).astype(np.float32)

    @cached_property
    def candidates(self) -> CandidateSpace:
        """What is composed: the modules here, whether the router knows more or not."""
        return candidate_space(self.modules)

    def run_candidates(
        self, arrays: ModelArrays, batch: TokenBatch, hidden_BSD: jax.Array, only: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every composed candidate, or only some, alone on the batch: losses in nats, greedy hits, both [B, S, C]."""
        run = partial(_run_fixed, self.trunk_graph, self.run_layer, arrays, self._place(_arrays(batch)), hidden_BSD)
        space = self.candidates
        chosen = range(len(space)) if only is None else only
        results = [run(jnp.int32(space.module_C[c]), jnp.int32(space.blocks_C[c])) for c in chosen]
        losses, hits = zip(*to_host(results), strict=True)
        return np.stack(losses, axis=-1), np.stack(hits, axis=-1)

    def load(self, expert: np.ndarray, width: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
        """Tokens that ran each block, by layer and module, from the decisions of a routing trace (`Decision`)."""
        names = [module.name for module in self.modules]
        return {
            layer: dict(zip(names, measured_load(self.space, self.modules, layer, expert, width), strict=True))
            for layer in self.trunk.spec.routed_layers
        }

    def enter(self, arrays: ModelArrays, batch: TokenBatch) -> jax.Array:
        """The trunk's state in front of the first routed layer: [B, S, D]."""

        def compute() -> jax.Array:
            return _enter(self.trunk_graph, arrays, self._place(_arrays(batch)))

        return self.trunk.enter(batch, self.mesh, compute)

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
        hint_BE: np.ndarray | None = None,
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
            hint_BE: from `hint`, for those who know the domain of each row.
        """
        return _composed(*self._inputs(arrays, batch, hidden_BSD, available_E, price, width_cap, outcomes_BSC, hint_BE))

    def run_with_logits(
        self,
        arrays: ModelArrays,
        batch: TokenBatch,
        hidden_BSD: jax.Array,
        *,
        available_E: np.ndarray,
        price: float | None = None,
        hint_BE: np.ndarray | None = None,
    ) -> tuple[jax.Array, Decision]:
        """As `run`, with the logits, float32[B, S, V]: for a few rows, since vocabularies are large."""
        return _composed_with_logits(
            *self._inputs(arrays, batch, hidden_BSD, available_E, price, UNCAPPED, None, hint_BE)
        )

    def _inputs(
        self,
        arrays: ModelArrays,
        batch: TokenBatch,
        hidden_BSD: jax.Array,
        available_E: np.ndarray,
        price: float | None,
        width_cap: int,
        outcomes_BSC: np.ndarray | None,
        hint_BE: np.ndarray | None,
    ) -> tuple:
        """What the compiled pass takes, where the model lies."""
        assert self.router.needs_outcomes <= (outcomes_BSC is not None), "this router needs outcomes"
        if hint_BE is None:
            hint_BE = self.hint([""] * len(batch.tokens))
        return (
            (self.trunk_graph, nnx.graphdef(self.router), self.run_layer),
            arrays,
            self._place(_arrays(batch)),
            hidden_BSD,
            *replicate(
                (available_E, np.float32(self.price if price is None else price), np.int32(width_cap)), self.mesh
            ),
            None if outcomes_BSC is None else self._place(outcomes_BSC),
            self._place(hint_BE),
        )

    def _place(self, rows: Any) -> Any:
        """Arrays by row of the batch, where the model lies."""
        return rows if self.mesh is None else to_mesh(rows, self.mesh, TOKENS)


def _arrays(batch: TokenBatch) -> tuple[Any, Any, Any, Any]:
    return batch.tokens, batch.targets, batch.segment_ids, batch.positions


@partial(jax.jit, static_argnums=0)
def _enter(graph: nnx.GraphDef, arrays: ModelArrays, batch: tuple) -> jax.Array:
    tokens, _, segment_ids, positions = batch
    return nnx.merge(graph, arrays.trunk).enter(tokens, segment_ids, positions).hidden_BSD


@partial(jax.jit, static_argnums=(0, 1))
def _run_fixed(
    graph: nnx.GraphDef,
    run_layer: RunLayer,
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
    output = trunk.routed(hidden_BSD, segment_ids, positions, Experts(arrays.pools, routing, run_layer))
    return trunk.scores(output.hidden_BSD, targets)


class ComposedPass(NamedTuple):
    """What comes out of the layers of a composed model."""

    hidden_BSD: jax.Array  # for the trunk's `head`, `losses` or `scores`
    routing: Routing  # in the router's terms
    blocks_BSK: jax.Array  # int32 blocks run by each choice, summed over layers
    dropped: jax.Array  # int32, what limits of the layers had no room for
    cache: Cache | None  # where one went in: with these tokens in it

    @property
    def blocks_BS(self) -> jax.Array:
        return self.blocks_BSK.sum(-1)


def compose_pass(
    trunk: Trunk,
    router: Router,
    arrays: ModelArrays,
    batch: tuple,
    features: Features,
    hidden_BSD: jax.Array,
    width_cap: jax.Array,
    run_layer: RunLayer,
) -> ComposedPass:
    """Routes whole rows by `features`, runs the experts."""
    routing = router.route(features)
    width = jnp.where((width_cap < 0) | (routing.width == 0), routing.width, width_cap)
    return run_routing(trunk, arrays, routing._replace(width=width), features, batch[3], hidden_BSD, run_layer)


def run_routing(
    trunk: Trunk,
    arrays: ModelArrays,
    routing: Routing,
    features: Features,
    positions_BS: jax.Array,
    hidden_BSD: jax.Array,
    run_layer: RunLayer,
    cache: Cache | None = None,
) -> ComposedPass:
    """Runs the experts as the routing says, but no module that is not available.

    `hidden_BSD` is what `Trunk.enter` gave of these rows, and so is `cache`: None of whole rows.
    """
    available_BSK = jnp.take_along_axis(features.available_BE[:, None], routing.expert, axis=-1)
    routing = routing._replace(width=jnp.where(available_BSK, routing.width, 0))
    in_pool = routing._replace(expert=arrays.pool_index_E[routing.expert])
    experts = Experts(arrays.pools, in_pool, run_layer)
    output = trunk.routed(hidden_BSD, features.segment_ids_BS, positions_BS, experts, cache)
    blocks_BSK = sum(jnp.minimum(routing.width, pool.count[in_pool.expert]) for pool in arrays.pools.values())
    return ComposedPass(output.hidden_BSD, routing, jnp.asarray(blocks_BSK), output.side.dropped, output.cache)


def _pass(
    static: tuple[nnx.GraphDef, nnx.GraphDef, RunLayer],
    arrays: ModelArrays,
    batch: tuple,
    hidden_BSD: jax.Array,
    available_E: jax.Array,
    price: jax.Array,
    width_cap: jax.Array,
    outcomes_BSC: jax.Array | None,
    hint_BE: jax.Array,
) -> tuple[Trunk, ComposedPass]:
    """The trunk, and what came out of its layers."""
    trunk_graph, router_graph, run_layer = static
    trunk, router = nnx.merge(trunk_graph, arrays.trunk), nnx.merge(router_graph, arrays.router)
    tokens, _, segment_ids, _ = batch
    features = Features(
        hidden_BSD=normalised(hidden_BSD),
        tokens_BS=tokens,
        segment_ids_BS=segment_ids,
        available_BE=jnp.broadcast_to(available_E & arrays.present_E, (len(tokens), len(available_E))),
        price_B=jnp.broadcast_to(price, len(tokens)),
        outcomes_BSC=outcomes_BSC,
        hint_BE=hint_BE,
    )
    return trunk, compose_pass(trunk, router, arrays, batch, features, hidden_BSD, width_cap, run_layer)


def _decision(made: ComposedPass, loss_BS: jax.Array, hit_BS: jax.Array) -> Decision:
    return Decision(loss_BS, hit_BS, made.routing.expert, made.routing.width, made.blocks_BS, made.dropped)


@partial(jax.jit, static_argnums=0)
def _composed_with_logits(static: Any, arrays: ModelArrays, batch: tuple, *rest: Any) -> tuple[jax.Array, Decision]:
    trunk, made = _pass(static, arrays, batch, *rest)
    logits, targets = trunk.head(made.hidden_BSD), batch[1]
    return logits, _decision(made, token_losses(logits, targets), greedy_hits(logits, targets))


@partial(jax.jit, static_argnums=0)
def _composed(static: Any, arrays: ModelArrays, batch: tuple, *rest: Any) -> Decision:
    trunk, made = _pass(static, arrays, batch, *rest)
    return _decision(made, *trunk.scores(made.hidden_BSD, batch[1]))
