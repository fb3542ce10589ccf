"""Which device holds which blocks of which module: host-side, numpy only.

Modules differ in size and in load, so neither counting modules nor weighing them balances devices. A module is kept
whole where that balances, cut into runs of blocks where it does not, and stored more than once where memory is left.
Blocks are all of one size, so bytes are counted in blocks.

Shape letters: E modules, P devices.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_lab.parallel.balancing import Task, make_task, packed_afresh, packed_on
from moe_lab.parallel.bounds import Bound, lower_bound
from moe_lab.parallel.packing import BlockRun, Packing

WORTH_MOVING = 1.02  # a placement that moves everything has to be better by this much

__all__ = [
    "Balance",
    "Bound",
    "Piece",
    "Placement",
    "balance",
    "even_load",
    "lower_bound",
    "moved_blocks",
    "place",
]


@dataclasses.dataclass(frozen=True, order=True)
class Piece:
    """A run of one module's blocks on one device."""

    module: int
    copy: int  # 0 for the first copy of a module, 1 for the second ...
    first: int  # first block of the module that lies here
    count: int
    device: int


@dataclasses.dataclass(frozen=True)
class Placement:
    """A layer's blocks over devices. Every copy of a module has each of its blocks exactly once.

    A device holds at most one piece of a module, so copies of a module never share a device. A module without blocks
    has no pieces.
    """

    devices: int
    blocks_E: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def copies(self, module: int) -> int:
        """How many times a module is stored; 0 for a module without blocks."""
        return 1 + max((piece.copy for piece in self.pieces if piece.module == module), default=-1)

    def copies_E(self) -> np.ndarray:
        """How many times each module is stored: int64[E]."""
        copies = np.zeros(len(self.blocks_E), np.int64)
        for piece in self.pieces:
            copies[piece.module] = max(copies[piece.module], piece.copy + 1)
        return copies

    def used_P(self) -> np.ndarray:
        """Blocks held by each device: int64[P]."""
        used_P = np.zeros(self.devices, np.int64)
        for piece in self.pieces:
            used_P[piece.device] += piece.count
        return used_P

    def load_P(self, block_load: Sequence[np.ndarray]) -> np.ndarray:
        """Load of each device, where copies of a module share its tokens evenly: float64[P]."""
        copies_E, total_P = self.copies_E(), np.zeros(self.devices)
        for piece in self.pieces:
            run = block_load[piece.module][piece.first : piece.first + piece.count]
            total_P[piece.device] += float(run.sum()) / copies_E[piece.module]
        return total_P


class Balance(NamedTuple):
    """The fullest device over the mean device; 1 is even."""

    load: float
    blocks: float  # of what is stored, copies included
    blocks_once: float  # the fullest device over the mean if every module were stored once


def even_load(blocks_E: Sequence[int], tokens_E: Sequence[float]) -> list[np.ndarray]:
    """Load of each block where every token runs the whole module: a float64[blocks] for each module."""
    return [np.full(blocks, float(tokens)) for blocks, tokens in zip(blocks_E, tokens_E, strict=True)]


def balance(placement: Placement, block_load: Sequence[np.ndarray]) -> Balance:
    """How even a placement is under a load."""

    def over_mean(values_P: np.ndarray, total: float) -> float:
        return float(values_P.max() * placement.devices / total) if total else 1.0

    load_P, used_P = placement.load_P(block_load), placement.used_P()
    return Balance(
        load=over_mean(load_P, load_P.sum()),
        blocks=over_mean(used_P, used_P.sum()),
        blocks_once=over_mean(used_P, sum(placement.blocks_E)),
    )


def moved_blocks(previous: Placement, new: Placement) -> int:
    """Blocks that have to be copied to a device that did not hold them. Modules keep their numbers."""
    before, after = _held(previous, new)
    devices = min(previous.devices, new.devices)
    return int(after.sum() - (after[:devices] & before[:devices]).sum())


def place(
    blocks_E: Sequence[int],
    block_load: Sequence[np.ndarray],
    devices: int,
    *,
    split: bool = True,
    replicate: float = 0.0,
    slots: int | None = None,
    slack: float = 0.05,
    previous: Placement | None = None,
) -> Placement:
    """Places a layer's blocks so that no device has much more load or many more blocks than the mean.

    Modules go whole, the largest first, to where load and blocks then stay lowest; moves and exchanges follow. Devices
    that are still above a limit give away parts of modules, and modules whose hottest block is too much for a device
    are stored more often. The limits are `1 + slack` times the mean, or the lower bound where that is above it.

    Args:
        blocks_E: blocks of each module; 0 is allowed.
        block_load: load of each block of each module, such as the tokens that run it; see `even_load`.
        devices: P.
        split: modules may be cut. Then every device keeps the limit on blocks; without, both limits are only aims.
        replicate: blocks that copies may take, as a share of all blocks. They are used only as far as the load needs
            them, not for the last two percent, and if possible so that no device holds more than `1 + replicate` times
            the mean without copies.
        slots: blocks a device may hold at most.
        slack: how far above the mean a device may lie.
        previous: what lies where now. It stays while it keeps the limits, else few blocks move. Modules keep their
            numbers: new ones come last, and one that is gone keeps its place with 0 blocks.

    Returns:
        The placement: the same one for the same arguments.

    Raises:
        LabError: the arguments contradict each other, or the modules do not fit.
    """
    task = make_task(blocks_E, block_load, devices, split, replicate, slots, slack)
    if previous is None:
        return _placement(task, packed_afresh(task))
    kept = packed_on(task, [(BlockRun(p.module, p.copy, p.first, p.count), p.device) for p in previous.pieces])
    if kept and task.excess(kept[0]) <= 1:
        return _placement(task, kept[0])
    fresh = packed_afresh(task)
    for packing in kept:
        if task.excess(packing) <= max(1.0, WORTH_MOVING * task.excess(fresh)):
            return _placement(task, packing)
    return _relabelled(_placement(task, fresh), previous)


def _placement(task: Task, packing: Packing) -> Placement:
    pieces = tuple(sorted(Piece(*run, device) for run, device in packing.runs()))
    return Placement(task.devices, task.blocks_E, pieces)


def _relabelled(placement: Placement, previous: Placement) -> Placement:
    """The placement with its devices numbered so that the fewest blocks move."""
    # It comes with jax, and takes long to import.
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    held, held_before = _held(placement, previous)
    overlap_PP = np.zeros((placement.devices, placement.devices), np.int64)
    same = held.astype(np.int64) @ held_before.T[:, : placement.devices]
    overlap_PP[:, : same.shape[1]] = same
    _, device = linear_sum_assignment(overlap_PP, maximize=True)
    pieces = (dataclasses.replace(piece, device=int(device[piece.device])) for piece in placement.pieces)
    return dataclasses.replace(placement, pieces=tuple(sorted(pieces)))


def _held(*placements: Placement) -> list[np.ndarray]:
    """Which device holds which block of any module: a bool[P, blocks] for each placement, with the same columns."""
    blocks = itertools.zip_longest(*(placement.blocks_E for placement in placements), fillvalue=0)
    start = [0, *itertools.accumulate(map(max, blocks))]
    tables = [np.zeros((placement.devices, start[-1]), bool) for placement in placements]
    for held, placement in zip(tables, placements, strict=True):
        for piece in placement.pieces:
            first = start[piece.module] + piece.first
            held[piece.device, first : first + piece.count] = True
    return tables
