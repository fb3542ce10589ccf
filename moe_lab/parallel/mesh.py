"""The mesh, and every way in which an array lies on it: nothing else in the project names a mesh axis.

Axis `data` splits the batch only. Axis `expert` splits the batch and the pool's blocks: where tokens rest they lie
over all devices, and the routed layer brings those of one `expert` row together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moe_lab.errors import LabError
from moe_lab.nn.layout import Layout, T
from moe_lab.parallel.spec import MeshSpec

DATA, EXPERT = "data", "expert"

TOKENS = PartitionSpec((DATA, EXPERT))
"""Rows of a batch, and tokens: over all devices."""
BLOCKS = PartitionSpec(EXPERT)
"""The pool's blocks and the tables that say what a device holds: over `expert`, the same for every `data` row."""
REPLICATED = PartitionSpec()
"""The router, what is small, and the trunk unless it is sharded."""


def longest_axis(shape: Sequence[int], devices: int, stacked: bool = False) -> PartitionSpec:
    """A sharded trunk's parameter: over all devices along its longest axis that they divide, else everywhere.

    With `stacked` axis 0 counts layers and stays whole.
    """
    axes = [axis for axis in range(stacked, len(shape)) if shape[axis] and shape[axis] % devices == 0]
    if not axes:
        return REPLICATED
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, (DATA, EXPERT))


def make_mesh(spec: MeshSpec, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges the devices; neighbours along `expert` are neighbours in the order given."""
    devices = list(jax.devices() if devices is None else devices)
    if len(devices) != spec.devices:
        raise LabError(
            f"mesh {spec} needs {spec.devices} devices, and there are {len(devices)}; "
            f"choose data and expert so that data * expert = {len(devices)}"
        )
    shape = (spec.data, spec.expert)
    return Mesh(np.array(devices).reshape(shape), (DATA, EXPERT), axis_types=(AxisType.Auto, AxisType.Auto))


def to_mesh(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Puts arrays that every process holds alike onto the mesh; each device receives its part only."""
    where = NamedSharding(mesh, spec)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        array = np.asarray(leaf)
        if array.ndim and spec == TOKENS and array.shape[0] % mesh.devices.size:
            raise LabError(
                f"a batch of {array.shape[0]} rows cannot be shared evenly by {mesh.devices.size} devices; "
                f"make batch_size (and rows) a multiple of {mesh.devices.size}"
            )
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return jax.tree.map(put, tree)


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """On every device of a mesh, or on the default device without one."""
    return jax.tree.map(jnp.asarray, tree) if mesh is None else to_mesh(tree, mesh, REPLICATED)


def trunk_to_mesh(state: Any, mesh: Mesh | None, sharded: bool) -> Any:
    """A trunk's parameters on a mesh, if there is one: whole on every device, or each device its part.

    What lies there already, as `load_trunk` leaves it, is not moved.
    """
    if mesh is None or not sharded:
        return replicate(state, mesh)

    def put(leaf: Any) -> jax.Array:
        spec = longest_axis(leaf.shape, mesh.devices.size)
        if isinstance(leaf, jax.Array) and leaf.sharding == NamedSharding(mesh, spec):
            return leaf
        placed: jax.Array = to_mesh(leaf, mesh, spec)
        return placed

    return jax.tree.map(put, state)


@dataclasses.dataclass(frozen=True)
class MeshLayout(Layout):
    """Tokens over all devices of a mesh; parameters gathered where they are multiplied, whatever they lie on."""

    mesh: Mesh = dataclasses.field(kw_only=True)

    @property
    def devices(self) -> int:
        return int(self.mesh.devices.size)

    @property
    def spreads(self) -> bool:
        return True

    def gather(self, params: T) -> T:
        where = NamedSharding(self.mesh, REPLICATED)
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, where), params)

    def spread(self, x_BSD: T) -> T:
        return jax.lax.with_sharding_constraint(x_BSD, NamedSharding(self.mesh, TOKENS))


@dataclasses.dataclass(frozen=True)
class GatheredLayout(MeshLayout):
    """Every device computes all of it from parameters that lie in parts: for what runs without a mesh otherwise."""

    @property
    def devices(self) -> int:
        return 1

    def spread(self, x_BSD: T) -> T:
        return x_BSD


def to_host(tree: Any) -> Any:
    """The whole of every array as numpy, in every process."""
    from jax.experimental import multihost_utils

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)
