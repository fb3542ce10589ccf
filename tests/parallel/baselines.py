"""What others do, to compare with: whole modules by load alone.

Shape letters: E modules, P devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_lab.errors import LabError
from moe_lab.parallel.placement import Piece, Placement


def place_equal_count(
    blocks_E: Sequence[int], block_load: Sequence[np.ndarray], devices: int, *, redundant: int = 0
) -> Placement:
    """As many modules on each device: the hottest first, to the least loaded device that has not its number yet.

    The packing of EPLB (https://github.com/deepseek-ai/EPLB), for modules that are all taken to be of one size.

    Args:
        blocks_E: blocks of each module.
        block_load: load of each block of each module.
        devices: P.
        redundant: copies beside the modules; each goes to the module with the most load per copy.
    """
    load_E, copies_E = _loads(block_load), [int(blocks > 0) for blocks in blocks_E]
    for _ in range(redundant):
        copyable = [e for e, copies in enumerate(copies_E) if 0 < copies < devices]
        if not copyable:
            raise LabError(f"{redundant} redundant copies: {devices} devices have no room for so many")
        copies_E[max(copyable, key=lambda e: (load_E[e] / copies_E[e], -e))] += 1
    return _by_load(blocks_E, load_E, devices, copies_E, most=-(-sum(copies_E) // devices))


def place_by_load(blocks_E: Sequence[int], block_load: Sequence[np.ndarray], devices: int) -> Placement:
    """Longest processing time first: the hottest module to the least loaded device, whatever its size."""
    return _by_load(blocks_E, _loads(block_load), devices, [int(blocks > 0) for blocks in blocks_E], len(blocks_E))


def _loads(block_load: Sequence[np.ndarray]) -> list[float]:
    return [float(load.sum()) for load in block_load]


def _by_load(
    blocks_E: Sequence[int], load_E: Sequence[float], devices: int, copies_E: Sequence[int], most: int
) -> Placement:
    copies = [(load_E[e] / copies_E[e], e, copy) for e in range(len(blocks_E)) for copy in range(copies_E[e])]
    load_P, held_P = np.zeros(devices), [set[int]() for _ in range(devices)]
    pieces = []
    for load, module, copy in sorted(copies, key=lambda item: (-item[0], item[1:])):
        free = [p for p in range(devices) if module not in held_P[p]]
        device = min(free, key=lambda p: (len(held_P[p]) >= most, load_P[p]))
        load_P[device] += load
        held_P[device].add(module)
        pieces.append(Piece(module, copy, 0, blocks_E[module], device))
    return Placement(devices, tuple(blocks_E), tuple(sorted(pieces)))
