"""What no placement can undercut: lower bounds of the fullest device's load and blocks.

Shape letters: E modules, P devices, U units, which are what cannot be cut: blocks, or modules where they stay whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Bound(NamedTuple):
    """What the fullest device has at least."""

    load: float
    blocks: int


def lower_bound(
    blocks_E: Sequence[int],
    block_load: Sequence[np.ndarray],
    devices: int,
    *,
    split: bool = True,
    copies_E: Sequence[int] | None = None,
    slots: int | None = None,
) -> Bound:
    """The best that any placement of these modules can reach, in load and in blocks, each on its own.

    It is the mean, the largest unit, or what devices have at least that two or more of the largest units share.

    Args:
        blocks_E: blocks of each module.
        block_load: load of each block of each module.
        devices: P.
        split: modules may be cut.
        copies_E: how often each module is stored; once if left out.
        slots: blocks a device may hold at most. It raises the bound of the load: who holds a hot block has to hold cold
            ones too, for which the other devices have no room.
    """
    copies_E = [1] * len(blocks_E) if copies_E is None else copies_E
    stored = [
        load / copies for load, copies in zip(block_load, copies_E, strict=True) if len(load) for _ in range(copies)
    ]
    if not stored:
        return Bound(0.0, 0)
    block_loads = np.concatenate(stored)
    load_U = block_loads if split else np.array([load.sum() for load in stored])
    size_U = np.ones(len(load_U), np.int64) if split else np.array([len(load) for load in stored])
    load = max(float(block_loads.sum()) / devices, _shared(load_U, devices))
    if slots is not None:
        load = max(load, _crowded(load_U, size_U, block_loads, devices, slots))
    return Bound(load, max(-(-len(block_loads) // devices), int(_shared(size_U, devices))))


def _shared(value_U: np.ndarray, devices: int) -> float:
    """Of the k * P + 1 largest units some k + 1 are on one device: for k = 0, the largest one is somewhere."""
    before = _before(np.sort(value_U)[::-1])
    k = np.arange((len(value_U) - 1) // devices + 1)
    return float((before[k * devices + 1] - before[k * devices - k]).max())


def _crowded(load_U: np.ndarray, size_U: np.ndarray, block_loads: np.ndarray, devices: int, slots: int) -> float:
    """Either two of the k hottest units share a device, or k devices hold them and all that the others cannot."""
    order = np.argsort(-load_U, kind="stable")
    k = np.arange(1, min(devices, len(load_U)) + 1)
    others = len(block_loads) - (devices - k) * slots - _before(size_U[order])[k]
    apart = (_before(load_U[order])[k] + _before(np.sort(block_loads))[np.maximum(others, 0)]) / k
    together = np.concatenate([[np.inf], load_U[order][k[1:] - 1] + load_U[order][k[:-1] - 1]])
    return float(np.minimum(apart, together).max())


def _before(values: np.ndarray) -> np.ndarray:
    """The sum of the first n values, at n."""
    return np.concatenate([[0], np.cumsum(values)])
