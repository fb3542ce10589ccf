"""One step of a composed model over a mesh, as shapes only: what the compiler needs and no weights.

The layers are the project's own. Layers that are alike are stacked and scanned, so each kind compiles once.

Shape letters: B batch, S sequence, T = B * S tokens, D model width, V vocabulary, E modules, R rungs, K choices,
P devices of the `expert` axis, L layers of one stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_lab.nn.layers import RMSNorm
from moe_lab.nn.pool import Blocks, Routing
from moe_lab.nn.spec import TrunkSpec
from moe_lab.nn.trunk import Experts, Layer, token_losses
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import BLOCKS, EVERYWHERE, TOKENS, longest_axis
from moe_lab.parallel.placement import Placement
from moe_lab.parallel.pool import Holdings, PlacedPool, room_for
from moe_lab.planning.compiled import LOOP

LONGEST_UNIT = 8  # layers after which a pattern of layers may repeat


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepShape:
    """Everything that decides what is compiled.

    Args:
        trunk: the trunk's shapes.
        placements: where each routed layer's blocks lie.
        rungs_ER: blocks of each module at each rung that the router may choose.
        top_k: choices per token.
        rows: sequences in the batch, over all devices.
        seq_len: tokens of a sequence.
        train: gradients and Adam for the modules, in float32, with every layer recomputed; the trunk stays frozen.
        dtype: of activations and of all weights that are not trained.
        trunk_sharding: `replicated`, or `sharded` over all devices and gathered layer by layer.
    """

    trunk: TrunkSpec
    placements: Mapping[int, Placement]
    rungs_ER: tuple[tuple[int, ...], ...]
    top_k: int
    rows: int
    seq_len: int
    train: bool
    dtype: Literal["bfloat16", "float32"]
    trunk_sharding: Literal["replicated", "sharded"]


@dataclasses.dataclass(frozen=True)
class AbstractStep:
    """A function with the shapes of its arguments, ready to be compiled."""

    function: Callable[..., Any]
    arguments: dict[str, Any]  # trees of ShapeDtypeStruct with shardings, by keyword
    donated: tuple[str, ...] = ()

    def argument_bytes(self) -> dict[str, int]:
        """Bytes of each argument on one device, counted from shapes and shardings."""
        return {name: sum(map(bytes_per_device, jax.tree.leaves(tree))) for name, tree in self.arguments.items()}

    def lower(self) -> Any:
        """The program, not compiled yet."""
        return jax.jit(self.function, donate_argnames=self.donated).lower(**self.arguments)


def bytes_per_device(array: jax.ShapeDtypeStruct) -> int:
    """Bytes of one device's part."""
    assert array.sharding is not None
    return int(np.prod(array.sharding.shard_shape(array.shape), dtype=np.int64)) * array.dtype.itemsize


def stacks(kinds: Sequence[Any]) -> list[tuple[int, int, int]]:
    """Cuts layers into repeats of short patterns: (first layer, layers of the pattern, repeats)."""
    found, first = [], 0
    while first < len(kinds):
        best = (1, 1)
        for unit in range(1, min(LONGEST_UNIT, len(kinds) - first) + 1):
            repeats = 1
            while kinds[first : first + unit] == kinds[first + repeats * unit : first + (repeats + 1) * unit]:
                repeats += 1
            # A longer pattern must cover more layers to be worth compiling.
            if repeats > 1 and unit * repeats > best[0] * best[1]:
                best = (unit, repeats)
        found.append((first, *best))
        first += best[0] * best[1]
    return found


class Builder:
    """Shapes with their shardings on one mesh."""

    def __init__(self, shape: StepShape, mesh: Mesh):
        self.shape, self.mesh = shape, mesh
        self.dtype = jnp.dtype(shape.dtype)
        self.pool_dtype = jnp.dtype("float32" if shape.train else shape.dtype)

    def array(self, shape: Sequence[int], dtype: Any, spec: PartitionSpec) -> Any:
        """A `ShapeDtypeStruct`; untyped, because it stands where arrays will be."""
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=NamedSharding(self.mesh, spec))

    def weight(self, leaf: Any, repeats: int | None = None) -> jax.ShapeDtypeStruct:
        """A trunk parameter, or `repeats` of them in a stack."""
        shape = leaf.shape if repeats is None else (repeats, *leaf.shape)
        sharded = self.shape.trunk_sharding == "sharded"
        spec = longest_axis(shape, self.mesh.devices.size, repeats is not None) if sharded else EVERYWHERE
        return self.array(shape, self.dtype, spec)

    def layer(self, index: int, repeats: int) -> tuple[nnx.GraphDef, Any]:
        graph, state = nnx.split(nnx.eval_shape(lambda: Layer(self.shape.trunk, index, rngs=nnx.Rngs(0))))
        return graph, jax.tree.map(partial(self.weight, repeats=repeats), state)

    def blocks(self, placement: Placement, repeats: int | None = None) -> Blocks:
        """The slots of all devices, of one layer or of a stack."""
        slots = placement.devices * room_for(placement).slots
        d, b = self.shape.trunk.d_model, self.shape.trunk.block
        stack = () if repeats is None else (repeats,)
        spec = BLOCKS if repeats is None else PartitionSpec(None, *BLOCKS)
        shapes = ((slots, d, b), (slots, d, b), (slots, b, d))
        return Blocks(*(self.array((*stack, *shape), self.pool_dtype, spec) for shape in shapes))

    def tables(self, placement: Placement) -> PlacedPool:
        """A pool's tables; its blocks travel apart, because they are stacked or trained."""
        room, devices = room_for(placement), placement.devices

        def table(spec: PartitionSpec, *shape: int) -> Any:
            return self.array(shape, jnp.int32, spec)

        nothing = self.array((), self.dtype, EVERYWHERE)
        return PlacedPool(
            blocks=Blocks(nothing, nothing, nothing),
            holdings=Holdings(*(table(BLOCKS, devices, room.modules) for _ in Holdings._fields)),
            copies=table(EVERYWHERE, room.modules),
            count=table(EVERYWHERE, room.modules),
            shared=table(BLOCKS, devices * room.slots),
            shared_blocks=room.shared_blocks,
        )

    def adam(self, optimizer: optax.GradientTransformation, pools: Any) -> Any:
        """Adam's state: two moments that lie as the pools do, and a counter."""
        lies = iter([leaf.sharding for leaf in jax.tree.leaves(pools)] * 2)

        def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(self.mesh, EVERYWHERE) if leaf.ndim == 0 else next(lies)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(place, jax.eval_shape(optimizer.init, pools))


def route(x_BSD: jax.Array, router: Mapping[str, jax.Array], norm: RMSNorm, top_k: int) -> Routing:
    """A linear router in float32: modules by their logits, then a rung of the ladder for each choice."""
    h_TD = norm(x_BSD).reshape(-1, x_BSD.shape[-1]).astype(jnp.float32)
    logit_TK, expert_TK = jax.lax.top_k(h_TD @ router["module_DE"], top_k)
    rung_T = jnp.argmax(h_TD @ router["rung_DR"], axis=-1)
    return Routing(expert_TK, router["rungs_ER"][expert_TK, rung_T[:, None]], jax.nn.softmax(logit_TK))


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Layers that repeat: `graphs` is one turn of the pattern, which runs `repeats` times."""

    first: int
    repeats: int
    graphs: tuple[nnx.GraphDef, ...]


class _Model:
    """The model as a function of its arguments, which it makes the shapes of."""

    def __init__(self, shape: StepShape, run: ShardedLayer):
        self.shape, self.run, self.make = shape, run, Builder(shape, run.mesh)
        spec = shape.trunk
        self.norm, self.norm_state = nnx.split(nnx.eval_shape(lambda: RMSNorm(spec.d_model, spec.rms_norm_eps)))
        self.stacks: list[_Stack] = []
        self.layers: list[list[Any]] = []  # stack, place in the pattern
        self.pools: list[dict[int, Blocks]] = []  # stack, place in the pattern if it is routed
        self.tables: list[dict[int, PlacedPool]] = []
        for first, unit, repeats in stacks(layer_kinds(spec, shape.placements)):
            built = [self.make.layer(index, repeats) for index in range(first, first + unit)]
            placed = {j: shape.placements[first + j] for j in range(unit) if first + j in shape.placements}
            self.stacks.append(_Stack(first, repeats, tuple(graph for graph, _ in built)))
            self.layers.append([state for _, state in built])
            self.pools.append({j: self.make.blocks(placement, repeats) for j, placement in placed.items()})
            self.tables.append({j: self.make.tables(placement) for j, placement in placed.items()})

    def arguments(self) -> dict[str, Any]:
        """Shapes of everything the loss depends on."""
        spec, make = self.shape.trunk, self.make
        vocabulary = jax.ShapeDtypeStruct((spec.vocab_size, spec.d_model), make.dtype)
        trunk = {
            "layers": self.layers,
            "embedding": make.weight(vocabulary),
            "norm": jax.tree.map(make.weight, self.norm_state),
        }
        if not spec.tie_embeddings:
            trunk["unembedding"] = make.weight(vocabulary)
        modules, rungs = np.shape(self.shape.rungs_ER)
        router = {
            "module_DE": make.array((spec.d_model, modules), jnp.float32, EVERYWHERE),
            "rung_DR": make.array((spec.d_model, rungs), jnp.float32, EVERYWHERE),
            "rungs_ER": make.array((modules, rungs), jnp.int32, EVERYWHERE),
        }
        tokens = make.array((self.shape.rows, self.shape.seq_len), jnp.int32, TOKENS)
        return {"pools": self.pools, "trunk": trunk, "tables": self.tables, "router": router, "tokens": tokens}

    def _whole(self, tree: Any) -> Any:
        """Weights gathered on every device."""
        everywhere = NamedSharding(self.run.mesh, EVERYWHERE)
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, everywhere), tree)

    def _by_token(self, x_BSD: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x_BSD, NamedSharding(self.run.mesh, TOKENS))

    def _turn(self, stack: _Stack, tables: Mapping[int, PlacedPool], carry: Any, stacked: Any) -> tuple[Any, None]:
        """One turn of a pattern of layers: the body of a scan."""
        (x_BSD, missing, routing), (states, blocks) = carry, stacked
        positions_BS = jnp.broadcast_to(jnp.arange(x_BSD.shape[1], dtype=jnp.int32), x_BSD.shape[:2])
        for j, graph in enumerate(stack.graphs):
            experts = None
            left_out: dict[int, jax.Array] = {}
            if j in tables:
                pool = dataclasses.replace(tables[j], blocks=blocks[j])
                experts = Experts(pools={j: pool}, routing=routing, run=self.run, left_out=left_out)
            layer = nnx.merge(graph, self._whole(states[j]))
            x_BSD = self._by_token(layer(x_BSD, jnp.zeros_like(positions_BS), positions_BS, experts, j))
            missing = missing + sum(left_out.values(), jnp.zeros((), jnp.int32))
        return (x_BSD, missing, routing), None

    def loss(self, pools: Any, trunk: Any, tables: Any, router: Any, tokens: Any) -> tuple[jax.Array, jax.Array]:
        """Mean loss, and the block rows that found no room. The first stack with a routed layer asks the router."""
        embedding, norm = self._whole(trunk["embedding"]), nnx.merge(self.norm, self._whole(trunk["norm"]))
        x_BSD, routing = self._by_token(embedding[tokens]), None
        missing = jnp.zeros((), jnp.int32)
        for index, stack in enumerate(self.stacks):
            if tables[index] and routing is None:
                routing = route(x_BSD, router, norm, self.shape.top_k)
            turn = partial(self._turn, stack, tables[index])
            with jax.named_scope(LOOP.format(first=stack.first, times=stack.repeats)):
                (x_BSD, missing, routing), _ = jax.lax.scan(
                    jax.checkpoint(turn) if self.shape.train else turn,
                    (x_BSD, missing, routing),
                    (trunk["layers"][index], pools[index]),
                    length=stack.repeats,
                )
        head = self._whole(trunk.get("unembedding", trunk["embedding"]))
        logits_BSV = (norm(x_BSD) @ head.T).astype(jnp.float32)
        return token_losses(logits_BSV[:, :-1], tokens[:, 1:]).mean(), missing


def layer_kinds(trunk: TrunkSpec, placements: Mapping[int, Placement]) -> list[Any]:
    """Something for each layer that is equal where layers are alike: a placement, or whether there is an own FFN."""
    dense = (trunk.shared_ffn or index not in trunk.routed_layers for index in range(trunk.num_layers))
    return [placements.get(index, has_ffn) for index, has_ffn in enumerate(dense)]


def build_step(shape: StepShape, run: ShardedLayer) -> AbstractStep:
    """Tokens to mean loss; in training, to the next state of the modules and of Adam."""
    model = _Model(shape, run)
    arguments = model.arguments()
    if not shape.train:
        return AbstractStep(model.loss, arguments)
    optimizer = optax.adam(1e-4)

    def train(pools: Any, adam: Any, **fixed: Any) -> tuple[Any, ...]:
        (loss, missing), gradient = jax.value_and_grad(model.loss, has_aux=True)(pools, **fixed)
        updates, adam = optimizer.update(gradient, adam)
        return optax.apply_updates(pools, updates), adam, loss, missing

    return AbstractStep(train, arguments | {"adam": model.make.adam(optimizer, model.pools)}, ("pools", "adam"))
