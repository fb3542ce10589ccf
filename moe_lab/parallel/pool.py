"""A layer's pool over the devices of a mesh: the blocks where a placement puts them, and the tables that find them.

Every device has the same number of block slots, so the arrays do not change shape when modules come, go or move.

Shape letters: E modules, P devices of the `expert` axis, L slots of a device, D model width, U hidden units of a block.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_lab.errors import Refused
from moe_lab.nn.pool import Blocks, Pool, Routing
from moe_lab.parallel.mesh import BLOCKS, EXPERT, REPLICATED, to_host, to_mesh
from moe_lab.parallel.placement import Piece, Placement

NOWHERE = -1


# An array; a partition spec or a shape where the same form describes arrays; numpy before anything is placed.
Leaf = Any


class Holdings(NamedTuple):
    """What each device holds of each module: one run of its blocks, or nothing. All int32."""

    start_PE: Leaf  # slot of the run's first block on the device
    held_PE: Leaf  # blocks of the run; 0: the device has none of the module
    first_PE: Leaf  # the run's first block, counted in the module
    copy_PE: Leaf  # which copy of the module the run belongs to


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlacedPool:
    """The blocks of one layer, spread over the `expert` axis."""

    blocks: Blocks  # [P * L, ...], device p owns slots p * L : (p + 1) * L
    holdings: Holdings
    copies: Leaf  # int32[E] how often a module is stored; its tokens take turns
    count: Leaf  # int32[E] blocks of the whole module
    shared: Leaf  # int32[P * L] which of the blocks stored more than once lies here, or NOWHERE
    shared_blocks: int = dataclasses.field(metadata={"static": True})  # room for blocks stored more than once

    @property
    def num_modules(self) -> int:
        return self.count.shape[0]


def specs(pool: PlacedPool) -> PlacedPool:
    """The pool's partition specs, in its own form."""
    return dataclasses.replace(
        pool,
        blocks=Blocks(BLOCKS, BLOCKS, BLOCKS),  # type: ignore[arg-type]
        holdings=Holdings(BLOCKS, BLOCKS, BLOCKS, BLOCKS),
        copies=REPLICATED,
        count=REPLICATED,
        shared=BLOCKS,
    )


def local_pool(pool: PlacedPool) -> Pool:
    """What this device holds, as a pool of its own. Inside `shard_map` only."""
    return Pool(synchronised(pool), pool.holdings.start_PE[0], pool.holdings.held_PE[0])


def local_routing(pool: PlacedPool, routing: Routing, token_T: jax.Array) -> Routing:
    """A routing of whole modules in terms of the runs held here: a run begins where the blocks before it end.

    Args:
        pool: this device's part.
        routing: `[T, K]`, by module.
        token_T: the number that decides which copy serves a token.
    """
    _, held_E, first_E, copy_E = (table[0] for table in pool.holdings)
    expert = routing.expert
    mine = token_T[:, None] % pool.copies[expert] == copy_E[expert]
    width = jnp.clip(routing.width - first_E[expert], 0, held_E[expert])
    return routing._replace(width=jnp.where(mine, width, 0))


def synchronised(pool: PlacedPool) -> Blocks:
    """The blocks held here. Blocks stored more than once receive the sum of the gradients of all their copies."""
    if pool.shared_blocks == 0:
        return pool.blocks
    return _synchronised(pool.shared_blocks, pool.blocks, pool.shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _synchronised(room: int, blocks: Blocks, shared_L: jax.Array) -> Blocks:
    return blocks


def _synchronised_backward(room: int, shared_L: jax.Array, gradient: Blocks) -> tuple[Blocks, None]:
    held_L = shared_L != NOWHERE

    def total(own: jax.Array) -> jax.Array:
        # A number out of range is dropped when writing.
        gathered = jnp.zeros((room, *own.shape[1:]), own.dtype).at[jnp.where(held_L, shared_L, room)].add(own)
        everywhere = jax.lax.psum(gathered, EXPERT)
        return jnp.where(held_L[:, None, None], everywhere[jnp.where(held_L, shared_L, 0)], own)

    return type(gradient)(*map(total, gradient)), None


_synchronised.defvjp(lambda room, blocks, shared_L: (blocks, shared_L), _synchronised_backward)


@dataclasses.dataclass(frozen=True)
class Room:
    """What a pool's arrays have room for. The compiled program depends on this, and not on who lives there."""

    slots: int  # blocks of each device
    modules: int
    shared_blocks: int  # blocks that are stored more than once


@dataclasses.dataclass(frozen=True)
class Layout:
    """A placement with a slot for every block."""

    placement: Placement
    room: Room
    start: Mapping[Piece, int]  # a piece's first slot on its device

    def owner(self, device: int) -> list[Piece]:
        """The pieces of one device."""
        return [piece for piece in self.placement.pieces if piece.device == device]


def room_for(placement: Placement) -> Room:
    """The least room that a placement needs."""
    shared = sum(n for e, n in enumerate(placement.blocks_E) if placement.copies(e) > 1)
    return Room(max(1, int(placement.used_P().max(initial=0))), len(placement.blocks_E), shared)


def lay_out(placement: Placement, room: Room | None = None, previous: Layout | None = None) -> Layout:
    """Gives every piece its slots.

    Args:
        placement: who holds what.
        room: by default the least; more leaves room for modules to come.
        previous: pieces that it has too keep their slots, unless their device is too cut up to take a new piece.
    """
    needed = room_for(placement)
    room = needed if room is None else room
    for what, least, most in zip(
        ("slots", "modules", "shared blocks"), *map(dataclasses.astuple, (needed, room)), strict=True
    ):
        if least > most:
            raise Refused(
                f"the placement needs {least} {what} and there is room for {most}; compose again with more room"
            )
    start: dict[Piece, int] = {}
    for device in range(placement.devices):
        pieces = sorted(piece for piece in placement.pieces if piece.device == device)
        kept = {p: previous.start[p] for p in pieces if previous is not None and p in previous.start}
        fitted = _fit(kept, [p for p in pieces if p not in kept], room.slots)
        start |= fitted if fitted is not None else _packed(pieces)
    return Layout(placement, room, start)


def _packed(pieces: Sequence[Piece]) -> dict[Piece, int]:
    ends = np.cumsum([0, *(piece.count for piece in pieces)])
    return dict(zip(pieces, map(int, ends), strict=False))


def _fit(kept: Mapping[Piece, int], new: Sequence[Piece], slots: int) -> dict[Piece, int] | None:
    """The first gap that takes each new piece, the longest first; None if one finds no gap."""
    taken = np.zeros(slots, bool)
    for piece, at in kept.items():
        taken[at : at + piece.count] = True
    start = dict(kept)
    for piece in sorted(new, key=lambda piece: -piece.count):
        gaps = [at for at in range(slots - piece.count + 1) if not taken[at : at + piece.count].any()]
        if not gaps:
            return None
        start[piece] = gaps[0]
        taken[gaps[0] : gaps[0] + piece.count] = True
    return start


class Tables(NamedTuple):
    """A layout as the arrays of a `PlacedPool`, in numpy."""

    holdings: Holdings
    copies_E: np.ndarray
    count_E: np.ndarray
    shared_L: np.ndarray


def tables(layout: Layout) -> Tables:
    """Writes down who holds what; modules that there is only room for have no blocks."""
    placement, room = layout.placement, layout.room
    holdings = Holdings(*(np.zeros((placement.devices, room.modules), np.int32) for _ in Holdings._fields))
    copies, count = np.ones(room.modules, np.int32), np.zeros(room.modules, np.int32)
    for e, blocks in enumerate(placement.blocks_E):
        copies[e], count[e] = max(1, placement.copies(e)), blocks
    # Only blocks that are stored more than once need a number, by which the gradients of their copies find each other;
    # those of one module are numbered on from where the module before it ended.
    shared = np.full(placement.devices * room.slots, NOWHERE, np.int32)
    number = np.concatenate([[0], np.cumsum(np.where(copies > 1, count, 0))])
    for piece, slot in layout.start.items():
        for table, value in zip(holdings, (slot, piece.count, piece.first, piece.copy), strict=True):
            table[piece.device, piece.module] = value
        if copies[piece.module] > 1:
            at = piece.device * room.slots + slot
            shared[at : at + piece.count] = number[piece.module] + piece.first + np.arange(piece.count)
    return Tables(holdings, copies, count, shared)


def block_spec(blocks: Blocks, mesh: Mesh) -> PartitionSpec:
    """How a module in training lies on a mesh: over `expert` where its blocks divide, everywhere where they do not."""
    return REPLICATED if blocks.num_blocks % mesh.shape[EXPERT] else BLOCKS


def cut_evenly(blocks: Blocks, mesh: Mesh) -> PlacedPool:
    """One module as a pool, an even run of its blocks on each device, in their order. Works inside `jit`."""
    devices, count = mesh.shape[EXPERT], blocks.num_blocks
    slots = -(-count // devices)
    padding = ((0, devices * slots - count), (0, 0), (0, 0))
    first = np.arange(devices, dtype=np.int32)[:, None] * slots
    zero = jnp.zeros((devices, 1), jnp.int32)
    held = jnp.asarray(np.clip(count - first, 0, slots))
    return PlacedPool(
        blocks=type(blocks)(*(jnp.pad(w, padding) for w in blocks)),
        holdings=Holdings(zero, held, jnp.asarray(first), zero),
        copies=jnp.ones(1, jnp.int32),
        count=jnp.full(1, count, jnp.int32),
        shared=jnp.full(devices * slots, NOWHERE, jnp.int32),
        shared_blocks=0,
    )


ReadRun = Callable[[int, int, int], Blocks]
"""Blocks `first : first + count` of a module, as numpy: `read(module, first, count)`."""


def place_pool(read: ReadRun, layout: Layout, mesh: Mesh) -> PlacedPool:
    """Fills the devices of this process: each of their runs is read once, and no other run is read."""
    slots = layout.room.slots
    like = read(layout.placement.pieces[0].module, 0, 0)
    filled: dict[int, Blocks] = {}

    def fill(device: int) -> Blocks:
        """The slots of one device; empty ones hold zeros."""
        if device not in filled:
            blocks: Any = type(like)(*(np.zeros((slots, *w.shape[1:]), w.dtype) for w in like))  # type: ignore[arg-type]
            for piece in layout.owner(device):
                at = layout.start[piece]
                for target, source in zip(blocks, read(piece.module, piece.first, piece.count), strict=True):
                    target[at : at + piece.count] = source
            filled[device] = blocks
        return filled[device]

    where = NamedSharding(mesh, BLOCKS)

    def projection(which: int) -> jax.Array:
        shape = (layout.placement.devices * slots, *like[which].shape[1:])
        return jax.make_array_from_callback(shape, where, lambda index: fill(_device(index, slots))[which])

    return with_tables(type(like)(*(projection(which) for which in range(len(like)))), layout, mesh)


def _device(index: Any, slots: int) -> int:
    """Whose slots a part of the array holds."""
    return int((index[0].start or 0) // slots)


def with_tables(blocks: Blocks, layout: Layout, mesh: Mesh) -> PlacedPool:
    """A pool of blocks that lie as the layout says."""
    written = tables(layout)
    return PlacedPool(
        blocks=blocks,
        holdings=to_mesh(written.holdings, mesh, BLOCKS),
        copies=to_mesh(written.copies_E, mesh, REPLICATED),
        count=to_mesh(written.count_E, mesh, REPLICATED),
        shared=to_mesh(written.shared_L, mesh, BLOCKS),
        shared_blocks=layout.room.shared_blocks,
    )


def exchange(
    pool: PlacedPool, old: Layout, new: Layout, read: ReadRun, mesh: Mesh, changed: Sequence[int]
) -> PlacedPool:
    """The pool after a change of placement: what stays in its slots is not touched, the rest is read.

    Args:
        pool: laid out as `old`.
        old: must have the same room as `new`.
        new: where everything is to be.
        read: reads runs of the new modules.
        mesh: of the pool.
        changed: modules whose blocks are other ones than before.
    """
    assert old.room == new.room, "another room is another program: place the pool anew"
    slots = new.room.slots
    arriving: dict[int, list[Piece]] = {device: [] for device in range(new.placement.devices)}
    for piece, at in new.start.items():
        if old.start.get(piece) != at or piece.module in changed:
            arriving[piece.device].append(piece)
    runs: dict[Piece, Blocks] = {}

    def updated(which: int) -> jax.Array:
        whole = pool.blocks[which]
        parts = []
        for shard in whole.addressable_shards:
            data = shard.data
            for piece in arriving[_device(shard.index, slots)]:
                if piece not in runs:
                    runs[piece] = read(piece.module, piece.first, piece.count)
                at = new.start[piece]
                data = data.at[at : at + piece.count].set(jax.device_put(runs[piece][which], shard.device))
            parts.append(data)
        return jax.make_array_from_single_device_arrays(whole.shape, whole.sharding, parts)

    return with_tables(type(pool.blocks)(*(updated(which) for which in range(len(pool.blocks)))), new, mesh)


def reader(modules: Sequence[Blocks]) -> ReadRun:
    """Reads runs of modules that are in memory."""

    def read(module: int, first: int, count: int) -> Blocks:
        whole = modules[module]
        return type(whole)(*(np.asarray(w[first : first + count]) for w in whole))  # type: ignore[arg-type]

    return read


def gather(blocks: Blocks, layout: Layout) -> list[Blocks]:
    """The modules in one piece each, as numpy: the inverse of `place_pool`, from the first copy of each block."""
    whole = to_host(blocks)
    modules = []
    for e, count in enumerate(layout.placement.blocks_E):
        at = np.zeros(count, np.int64)
        for piece, slot in layout.start.items():
            if piece.module == e and piece.copy == 0:
                start = piece.device * layout.room.slots + slot
                at[piece.first : piece.first + piece.count] = start + np.arange(piece.count)
        modules.append(type(blocks)(*(w[at] for w in whole)))
    return modules
