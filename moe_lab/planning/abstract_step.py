"""One step of a composed model over a mesh, as shapes only: what the compiler needs and no weights.

The forward pass is `Trunk`'s own. Layers that are alike are stacked and scanned, so each kind compiles once.

Shape letters: B batch, S sequence, T = B * S tokens, D model width, V vocabulary, E modules, R rungs, K choices,
P devices of the `expert` axis, L layers of one stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_lab.experts.kinds import DEFAULT, find_kind
from moe_lab.nn.decoder import Experts, Trunk
from moe_lab.nn.pool import Blocks, Routing
from moe_lab.nn.precision import PRECISIONS
from moe_lab.nn.spec import TrunkSpec
from moe_lab.nn.stack import stack_trunk
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import BLOCKS, REPLICATED, TOKENS, MeshLayout, longest_axis
from moe_lab.parallel.placement import Placement
from moe_lab.parallel.pool import Holdings, PlacedPool, room_for
from moe_lab.routing.router import normalised


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
        train: gradients and Adam for the modules, in float32; the trunk stays frozen.
        dtype: of activations and of all weights that are not trained.
        trunk_sharding: `replicated`, or `sharded` over all devices and gathered layer by layer.
        recompute: makes every layer again for its gradient.
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
    recompute: bool = True


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


class Builder:
    """Shapes with their shardings on one mesh."""

    def __init__(self, shape: StepShape, mesh: Mesh):
        self.shape, self.mesh = shape, mesh
        self.dtype = jnp.dtype(shape.dtype)
        self.pool_dtype = jnp.dtype("float32" if shape.train else shape.dtype)

    def array(self, shape: Sequence[int], dtype: Any, spec: PartitionSpec) -> Any:
        """A `ShapeDtypeStruct`; untyped, because it stands where arrays will be."""
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=NamedSharding(self.mesh, spec))

    def weight(self, leaf: Any, stacked: bool) -> jax.ShapeDtypeStruct:
        """A trunk parameter, or one of each turn of a stack."""
        sharded = self.shape.trunk_sharding == "sharded"
        spec = longest_axis(leaf.shape, self.mesh.devices.size, stacked) if sharded else REPLICATED
        return self.array(leaf.shape, self.dtype, spec)

    def blocks(self, placement: Placement, repeats: int = 1) -> Blocks:
        """The slots of all devices, of one layer or of each turn of a stack."""
        slots = placement.devices * room_for(placement).slots
        kind, trunk = find_kind(DEFAULT), self.shape.trunk
        shapes = kind.shapes(slots, trunk.d_model, trunk.block).values()
        blocks: Blocks = kind.from_parts([self._stacked(repeats, shape, self.pool_dtype, BLOCKS) for shape in shapes])
        return blocks

    def _stacked(self, repeats: int, shape: Sequence[int], dtype: Any, spec: PartitionSpec) -> Any:
        if repeats == 1:
            return self.array(shape, dtype, spec)
        return self.array((repeats, *shape), dtype, PartitionSpec(None, *spec))

    def tables(self, placement: Placement, repeats: int = 1) -> PlacedPool:
        """A pool's tables; its blocks travel apart, because they may be trained."""
        room, devices = room_for(placement), placement.devices

        def table(spec: PartitionSpec, *shape: int) -> Any:
            return self._stacked(repeats, shape, jnp.int32, spec)

        nothing = self._stacked(repeats, (), self.dtype, REPLICATED)
        return PlacedPool(
            blocks=Blocks(nothing, nothing, nothing),
            holdings=Holdings(*(table(BLOCKS, devices, room.modules) for _ in Holdings._fields)),
            copies=table(REPLICATED, room.modules),
            count=table(REPLICATED, room.modules),
            shared=table(BLOCKS, devices * room.slots),
            shared_blocks=room.shared_blocks,
        )

    def adam(self, optimizer: optax.GradientTransformation, pools: Any) -> Any:
        """Adam's state: two moments that lie as the pools do, and a counter."""
        lies = iter([leaf.sharding for leaf in jax.tree.leaves(pools)] * 2)

        def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(self.mesh, REPLICATED) if leaf.ndim == 0 else next(lies)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(place, jax.eval_shape(optimizer.init, pools))


def route(x_BSD: jax.Array, router: Mapping[str, jax.Array], top_k: int) -> Routing:
    """A linear router in float32: modules by their logits, then a rung of the ladder for each choice."""
    h_BSD = normalised(x_BSD)
    logit_BSK, expert_BSK = jax.lax.top_k(h_BSD @ router["module_DE"], top_k)
    rung_BS = jnp.argmax(h_BSD @ router["rung_DR"], axis=-1)
    return Routing(expert_BSK, router["rungs_ER"][expert_BSK, rung_BS[..., None]], jax.nn.softmax(logit_BSK))


class _Model:
    """The composed model by shapes: the trunk that trains and evaluates, stacked, over placed pools."""

    def __init__(self, shape: StepShape, run: ShardedLayer):
        self.shape, self.run = shape, run
        self.make = Builder(shape, run.mesh)
        self.stacks = stack_trunk(shape.trunk, shape.placements)
        self.graph, state = nnx.split(nnx.eval_shape(self._trunk))
        turns = enumerate(stack.repeats for stack in self.stacks for _ in range(stack.unit))
        stacked = {("layers", place) for place, repeats in turns if repeats > 1}
        leaves = (self.make.weight(leaf, path[:2] in stacked) for path, leaf in nnx.to_flat_state(state))
        self.trunk = jax.tree.unflatten(jax.tree.structure(state), leaves)
        placed = {
            stack.first + j: (shape.placements[stack.first + j], stack.repeats)
            for stack in self.stacks
            for j in range(stack.unit)
            if stack.first + j in shape.placements
        }
        self.pools = {layer: self.make.blocks(*where) for layer, where in placed.items()}
        self.tables = {layer: self.make.tables(*where) for layer, where in placed.items()}

    def _trunk(self) -> Trunk:
        shape = self.shape
        layout = MeshLayout(mesh=self.run.mesh, recompute=shape.recompute)
        precision = PRECISIONS[shape.dtype]
        return Trunk(shape.trunk, rngs=nnx.Rngs(0), precision=precision, stacks=self.stacks, layout=layout)

    def arguments(self) -> dict[str, Any]:
        """Shapes of everything the loss depends on."""
        make, d_model = self.make, self.shape.trunk.d_model
        modules, rungs = np.shape(self.shape.rungs_ER)
        router = {
            "module_DE": make.array((d_model, modules), jnp.float32, REPLICATED),
            "rung_DR": make.array((d_model, rungs), jnp.float32, REPLICATED),
            "rungs_ER": make.array((modules, rungs), jnp.int32, REPLICATED),
        }
        tokens = make.array((self.shape.rows, self.shape.seq_len), jnp.int32, TOKENS)
        return {"pools": self.pools, "trunk": self.trunk, "tables": self.tables, "router": router, "tokens": tokens}

    def loss(self, pools: Any, trunk: Any, tables: Any, router: Any, tokens: Any) -> tuple[jax.Array, jax.Array]:
        """Mean loss, and the block rows that found no room."""
        model: Trunk = nnx.merge(self.graph, trunk)
        positions_BS = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        where = jnp.ones_like(positions_BS), positions_BS
        hidden_BSD = model.enter(tokens, *where).hidden_BSD
        routing = route(hidden_BSD, router, self.shape.top_k)
        placed = {layer: dataclasses.replace(tables[layer], blocks=blocks) for layer, blocks in pools.items()}
        output = model.routed(hidden_BSD, *where, Experts(placed, routing, self.run))
        losses_BS = model.losses(output.hidden_BSD, jnp.roll(tokens, -1, axis=1))
        return losses_BS[:, :-1].mean(), output.side.dropped


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
