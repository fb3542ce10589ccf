"""The pools of a composition: all on one device, or spread over a mesh and changed there while they stay resident."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from moe_lab.compose.parts import PublishedModule
from moe_lab.errors import Refused
from moe_lab.nn.pool import Blocks, make_pool
from moe_lab.parallel.mesh import EXPERT
from moe_lab.parallel.placement import Placement, even_load, place
from moe_lab.parallel.pool import Layout, Room, exchange, lay_out, place_pool, room_for
from moe_lab.routing.space import CandidateSpace

SPARE_MODULES = 4
"""Modules that may join a resident composition without a new program, if their blocks find free slots."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pools:
    """The blocks of every routed layer, and which module has which number in them."""

    layers: Mapping[int, Any]
    names: tuple[str | None, ...]  # by module number; None: nobody has this number now
    layouts: Mapping[int, Layout] = dataclasses.field(default_factory=dict)
    bytes_read: int = 0
    """What this process read from the registry to make this."""


def gather_modules(modules: Sequence[PublishedModule], layers: Sequence[int], dtype: DTypeLike = np.float32) -> Pools:
    """Everything on the default device, kept in `dtype`."""
    reads = _Reads(modules, dtype)
    pools = {
        layer: make_pool(
            [
                jax.tree.map(jnp.asarray, reads.run(layer, number, 0, module.layer_blocks[layer]))
                for number, module in enumerate(modules)
            ]
        )
        for layer in layers
    }
    return Pools(layers=pools, names=tuple(module.name for module in modules), bytes_read=reads.bytes)


class _Reads:
    """Reads runs of numbered modules and counts the bytes."""

    def __init__(self, modules: Sequence[PublishedModule | None], dtype: DTypeLike) -> None:
        self._modules, self._dtype = modules, dtype
        self.bytes = 0

    def run(self, layer: int, number: int, first: int, count: int) -> Blocks:
        module = self._modules[number]
        assert module is not None, "only numbers in use have pieces"
        blocks = module.read(layer, first, count)
        self.bytes += sum(w.nbytes for w in blocks)
        return jax.tree.map(lambda w: w.astype(self._dtype, copy=False), blocks)


def place_modules(
    modules: Sequence[PublishedModule],
    layers: Sequence[int],
    mesh: Mesh,
    *,
    load: Mapping[int, Sequence[np.ndarray]] | None = None,
    spare_blocks: int = 0,
    dtype: DTypeLike = np.float32,
) -> Pools:
    """Spreads the modules over the devices; each process reads only what its own devices hold.

    Args:
        modules: in the order of their numbers.
        layers: the routed layers.
        mesh: where to.
        load: tokens that run each block of each module, per layer; even if left out.
        spare_blocks: free slots on each device, beyond what is needed now, for modules to come.
        dtype: in which the blocks are kept.
    """
    reads = _Reads(modules, dtype)
    pools, layouts = {}, {}
    for layer in layers:
        placement = _place(modules, layer, mesh, None if load is None else load[layer])
        room = room_for(placement)
        room = Room(room.slots + spare_blocks, room.modules + SPARE_MODULES, room.shared_blocks)
        layouts[layer] = lay_out(placement, room)
        pools[layer] = place_pool(partial(reads.run, layer), layouts[layer], mesh)
    return Pools(layers=pools, names=tuple(module.name for module in modules), layouts=layouts, bytes_read=reads.bytes)


def _place(
    modules: Sequence[PublishedModule | None],
    layer: int,
    mesh: Mesh,
    load: Sequence[np.ndarray] | None,
    **options: Any,
) -> Placement:
    blocks_E = [0 if module is None else module.layer_blocks[layer] for module in modules]
    load = even_load(blocks_E, [1.0] * len(blocks_E)) if load is None else load
    return place(blocks_E, load, mesh.shape[EXPERT], **options)


def exchange_in_place(
    pools: Pools,
    old: Sequence[PublishedModule],
    new: Sequence[PublishedModule],
    mesh: Mesh,
    load: Mapping[int, Mapping[str, np.ndarray]] | None = None,
) -> Pools:
    """Modules that stay keep their numbers and, as far as balance allows, their devices.

    `load` is by layer and module, see `measured_load`; even if left out.
    """
    before = {module.name: module for module in old}
    after = {module.name: module for module in new}
    room = next(iter(pools.layouts.values())).room.modules
    numbered = [name if name in after else None for name in pools.names]
    for name in after:
        if name not in numbered:
            free = numbered.index(None) if None in numbered else len(numbered)
            numbered[free : free + 1] = [name]
    if len(numbered) > room:
        raise Refused(
            f"{len(numbered)} modules do not fit into a composition with room for {room}; build the model anew"
        )
    modules = [None if name is None else after[name] for name in numbered]
    changed = [
        number
        for number, name in enumerate(numbered)
        if name is not None and (name not in before or before[name].part.digest != after[name].part.digest)
    ]
    reads = _Reads(modules, jax.tree.leaves(next(iter(pools.layers.values())).blocks)[0].dtype)
    layers, layouts = {}, {}
    for layer, was in pools.layouts.items():
        slots, needed = was.room.slots, sum(0 if module is None else module.layer_blocks[layer] for module in modules)
        if needed > slots * was.placement.devices:
            raise Refused(
                f"the modules have {needed} blocks in layer {layer} and the composition has room for "
                f"{slots * was.placement.devices}; build it anew, with spare_blocks for modules to come"
            )
        wanted = None
        if load is not None:
            wanted = [np.zeros(0) if name is None else load[layer][name] for name in numbered]
        placement = _place(modules, layer, mesh, wanted, previous=was.placement, slots=slots)
        layouts[layer] = lay_out(placement, was.room, previous=was)
        layers[layer] = exchange(pools.layers[layer], was, layouts[layer], partial(reads.run, layer), mesh, changed)
    jax.block_until_ready(layers)
    return Pools(layers=layers, names=tuple(numbered), layouts=layouts, bytes_read=reads.bytes)


def measured_load(
    space: CandidateSpace, modules: Sequence[PublishedModule], layer: int, expert: np.ndarray, width: np.ndarray
) -> list[np.ndarray]:
    """How many tokens ran each block of each module in a layer: what placement balances.

    Args:
        space: of the router whose decisions these are.
        modules: in the order of their numbers in the pool.
        layer: a routed layer.
        expert: module of each choice, as the router counts; any shape.
        width: blocks of each choice.
    """
    loads = []
    for module in modules:
        blocks = module.layer_blocks[layer]
        mine = width[expert == space.modules.index(module.name)] if module.name in space.modules else width[:0]
        ran = np.bincount(np.minimum(mine, blocks).ravel().astype(np.int64), minlength=blocks + 1)
        # A width runs every block before its end.
        loads.append(ran[::-1].cumsum()[::-1][1:].astype(np.float64))
    return loads
