"""Placements by hand and random layers for the tests of this folder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from moe_lab.parallel.mesh import make_mesh
from moe_lab.parallel.placement import Piece, Placement
from moe_lab.parallel.spec import MeshSpec


def mesh_of(data: int, expert: int) -> Mesh:
    """A mesh over the first of the test devices."""
    return make_mesh(MeshSpec(data=data, expert=expert), jax.devices()[: data * expert])


def by_hand(devices: int, blocks: Sequence[int], *pieces: tuple[int, int, int, int, int]) -> Placement:
    """Pieces as (module, copy, first, count, device)."""
    return Placement(devices, tuple(blocks), tuple(Piece(*piece) for piece in pieces))


def cut_evenly(devices: int, blocks: Sequence[int]) -> Placement:
    """Every module cut into as many runs as there are devices; narrow modules leave devices empty."""
    pieces = []
    for module, count in enumerate(blocks):
        edges = np.linspace(0, count, devices + 1).astype(int)
        pieces += [
            (module, 0, int(low), int(high - low), device)
            for device, (low, high) in enumerate(itertools.pairwise(edges))
            if high > low
        ]
    return by_hand(devices, blocks, *pieces)


def round_robin(devices: int, blocks: Sequence[int]) -> Placement:
    """Whole modules, dealt out; fewer modules than devices leave devices empty."""
    return by_hand(devices, blocks, *((e, 0, 0, count, e % devices) for e, count in enumerate(blocks)))
