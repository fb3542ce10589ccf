"""Which device holds which blocks of which module: host-side, numpy only.

Modules differ in size and in load, so neither counting modules nor weighing them balances devices. A module is kept
whole where that balances, cut into runs of blocks where it does not, and stored more than once where memory is left.
Blocks are all of one size, so bytes are counted in blocks.

Shape letters: E modules, P devices.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_lab.errors import LabError
from moe_lab.parallel.bounds import Bound, lower_bound
from moe_lab.parallel.packing import TINY, Packing, Run

ROUNDS = 4  # how often more copies are tried
CANDIDATES = 8  # modules that are looked at when one more copy is needed
NEAR = 1.01  # this close to a bound counts as there
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
        split: modules may be cut. Without, both limits are aims; with it, blocks keep theirs.
        replicate: blocks that copies may take, as a share of all blocks. They are used as far as the load needs them,
            and no device holds more than `1 + replicate` times the mean of modules stored once.
        slots: blocks a device may hold at most.
        slack: how far above the mean a device may lie.
        previous: what lies where now. As few blocks as possible move; modules keep their numbers, new ones come last.

    Returns:
        The placement: the same one for the same arguments.

    Raises:
        LabError: the arguments contradict each other, or the modules do not fit.
    """
    task = _task(blocks_E, block_load, devices, split, replicate, slots, slack)
    kept = [] if previous is None else _continued(task, previous)
    for packing in kept:
        if task.excess(packing) <= 1:
            return _placement(task, packing)
    fresh = _fresh(task)
    for packing in kept:
        if task.excess(packing) <= WORTH_MOVING * task.excess(fresh):
            return _placement(task, packing)
    placement = _placement(task, fresh)
    return placement if previous is None else _relabelled(placement, previous)


class _Start(NamedTuple):
    """How a search begins."""

    share: float  # runs above this share of the load limit are cut first
    load: float = 1.0  # the mean load and the mean blocks count as one, times this: inf to leave one of them out
    blocks: float = 1.0


SPLIT_STARTS = (_Start(1.0), _Start(0.7), _Start(0.5), _Start(0.35), _Start(np.inf))
WHOLE_STARTS = (_Start(np.inf), _Start(np.inf, blocks=np.inf), _Start(np.inf, load=np.inf))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """What to place, and the limits."""

    blocks_E: tuple[int, ...]
    block_load: list[np.ndarray]
    devices: int
    split: bool
    slots: int
    spare: int  # blocks that copies may take
    even_spare: int  # so many that no device needs to hold more than 1 + replicate times the mean
    slack: float

    @property
    def total(self) -> int:
        return sum(self.blocks_E)

    @functools.cached_property
    def mean_load(self) -> float:
        return sum(float(load.sum()) for load in self.block_load) / self.devices or 1.0

    @functools.cached_property
    def load_limit(self) -> float:
        """Load a device should have at most, with all the copies that there may be."""
        if self.spare:
            bound = max(self.unit(module) / self.most(module) for module in range(len(self.blocks_E)))
        else:
            bound = self.reach([1] * len(self.blocks_E))
        return max((1 + self.slack) * self.mean_load, bound)

    def block_limit(self, copies_E: Sequence[int]) -> int:
        """Blocks a device should hold at most where modules are stored this often."""
        bound = lower_bound(self.blocks_E, self.block_load, self.devices, split=self.split, copies_E=copies_E).blocks
        return max(1, min(self.slots, max(int((1 + self.slack) * self.stored(copies_E) / self.devices), bound)))

    def limits(self, copies_E: Sequence[int]) -> tuple[float, float]:
        return self.load_limit, self.block_limit(copies_E)

    def scale(self, copies_E: Sequence[int]) -> tuple[float, float]:
        """Mean load and mean blocks of a device."""
        return self.mean_load, max(self.stored(copies_E) / self.devices, TINY)

    def packing(self, copies_E: Sequence[int]) -> Packing:
        slots = self.block_limit(copies_E) if self.split else self.slots
        return Packing(self.block_load, copies_E, self.devices, slots)

    def stored(self, copies_E: Sequence[int]) -> int:
        return sum(blocks * copies for blocks, copies in zip(self.blocks_E, copies_E, strict=True))

    def unit(self, module: int) -> float:
        """The load that only copies can spread: the hottest block's, or the module's if it stays whole."""
        load = self.block_load[module]
        return float(load.max(initial=0) if self.split else load.sum())

    def copyable(self, copies_E: Sequence[int], spare: int) -> list[int]:
        """Modules that can be stored once more, where copies may take `spare` blocks."""
        room = spare - self.stored(copies_E) + self.total
        return [e for e, blocks in enumerate(self.blocks_E) if 0 < blocks <= room and copies_E[e] < self.devices]

    def reach(self, copies_E: Sequence[int]) -> float:
        """The lowest load of the fullest device that this many copies can reach."""
        slots = self.block_limit(copies_E) if self.split else None
        bound = lower_bound(
            self.blocks_E, self.block_load, self.devices, split=self.split, copies_E=copies_E, slots=slots
        )
        return bound.load

    def most(self, module: int) -> int:
        """How often a module can be stored at most."""
        return min(self.devices, 1 + self.spare // max(self.blocks_E[module], 1))

    def excess(self, packing: Packing) -> float:
        """How far the fullest device lies above a limit: 1 and less is fine."""
        load = packing.load_P.max() / self.load_limit
        return max(load, packing.used_P.max() / self.block_limit(packing.copies_E)) - TINY


def _task(
    blocks_E: Sequence[int],
    block_load: Sequence[np.ndarray],
    devices: int,
    split: bool,
    replicate: float,
    slots: int | None,
    slack: float,
) -> _Task:
    """Checks what `place` is asked for, and finds out how many blocks copies may take."""
    loads = [np.asarray(load, np.float64) for load in block_load]
    if [load.shape for load in loads] != [(blocks,) for blocks in blocks_E]:
        raise LabError(
            f"the modules have {list(blocks_E)} blocks, the loads have shapes {[load.shape for load in loads]}: "
            "give one load for each block of each module"
        )
    if not all(np.isfinite(load).all() and (load >= 0).all() for load in loads):
        raise LabError("a block's load is negative or not a finite number: give token counts, 0 for an unused block")
    if devices < 1 or replicate < 0 or slack < 0:
        raise LabError(
            f"devices={devices}, replicate={replicate}, slack={slack}: there must be a device, and no share is negative"
        )
    total = sum(blocks_E)
    slots = total if slots is None else slots
    if devices * slots < total:
        raise LabError(
            f"{total} blocks do not fit: {devices} devices hold {slots} each, which is {devices * slots}. "
            f"Use {-(-total // max(slots, 1))} devices, {-(-total // devices)} blocks on each, or smaller modules."
        )
    spare = min(int(replicate * total), slots * devices - total)
    return _Task(
        blocks_E=tuple(int(blocks) for blocks in blocks_E),
        block_load=loads,
        devices=devices,
        split=split,
        slots=slots,
        spare=spare,
        even_spare=min(spare, max(0, int((1 + replicate) * total / devices) * devices - total)),
        slack=slack,
    )


def _placement(task: _Task, packing: Packing) -> Placement:
    pieces = tuple(sorted(Piece(*run, device) for run, device in packing.runs()))
    return Placement(task.devices, task.blocks_E, pieces)


def _fresh(task: _Task) -> Packing:
    """The first packing within the limits, with as few copies as reach them; else the best one."""
    copies_E = _needed_copies(task, [1] * len(task.blocks_E))
    packings: list[Packing] = []
    for _ in range(ROUNDS):
        aim = max(1.0, NEAR * task.reach(copies_E) / task.load_limit)
        for start in SPLIT_STARTS if task.split else WHOLE_STARTS:
            packing = _packed(task, copies_E, start)
            if packing is not None and task.excess(packing) <= aim:
                return packing
            packings += [packing] if packing is not None else []
        more_E = _more_copies(task, copies_E)
        if more_E is None:
            break
        copies_E = more_E
    if not packings:
        raise LabError(
            f"modules of up to {max(task.blocks_E)} blocks do not fit whole into {task.devices} devices of "
            f"{task.slots} blocks: let them be split, or use more devices or more blocks on each"
        )
    return min(packings, key=task.excess)


def _packed(task: _Task, copies_E: Sequence[int], start: _Start) -> Packing | None:
    """Places every module and evens out the devices.

    Returns:
        The packing, with fewer copies where they find no room; nothing if modules find none.
    """
    copies_E = list(copies_E)
    while True:
        packing = task.packing(copies_E)
        scale = task.scale(copies_E)
        runs = [
            run
            for module, copies in enumerate(copies_E)
            for copy in range(copies)
            for run in _cut(task, packing, Run(module, copy, 0, task.blocks_E[module]), start.share)
        ]
        stuck = packing.fill(runs, (scale[0] * start.load, scale[1] * start.blocks), task.split)
        if stuck is None:
            break
        module = stuck.module if copies_E[stuck.module] > 1 else int(np.argmax(copies_E))
        if copies_E[module] < 2:
            return None
        copies_E[module] -= 1
    limits = task.limits(copies_E)
    packing.improve(scale, limits=limits if task.split else (-1, -1))
    if task.split:
        packing.improve(limits, limits=limits, cut=True)
    return packing


def _cut(task: _Task, packing: Packing, run: Run, share: float) -> list[Run]:
    """The run in parts of at most this share of the load limit, and of no more blocks than a device may hold."""
    if not task.split or not run.length:
        return [run] if run.length else []
    load, blocks = task.limits(packing.copies_E)
    parts, end = [], run.first + run.length
    part = run._replace(length=1)
    for block in range(run.first + 1, end):
        longer = part._replace(length=part.length + 1)
        if longer.length > blocks or packing.load(longer) > share * load:
            parts.append(part)
            longer = part._replace(first=block, length=1)
        part = longer
    return [*parts, part]


def _needed_copies(task: _Task, copies_E: Sequence[int]) -> list[int]:
    """Stores hot modules more often, until the bound of the load is within the limit or does not sink any more.

    What leaves every device below `1 + replicate` times the mean of modules stored once is tried first.
    """
    best = task.reach(copies_E), list(copies_E)
    for spare in (task.even_spare, task.spare):
        more_E = list(copies_E)
        while best[0] > task.load_limit:
            copyable = task.copyable(more_E, spare)
            hottest = heapq.nlargest(CANDIDATES, copyable, key=lambda e: (task.unit(e) / more_E[e], -e))
            choices = []
            for rank, module in enumerate(hottest):
                choice_E = [copies + (e == module) for e, copies in enumerate(more_E)]
                reach = max(task.reach(choice_E), task.load_limit)
                choices.append((reach, task.block_limit(choice_E), rank, choice_E))
            if not choices:
                break
            reach, _, _, more_E = min(choices)
            best = min(best, (reach, more_E))
    return best[1]


def _more_copies(task: _Task, copies_E: Sequence[int]) -> list[int] | None:
    """Stores the modules of the most load more often, with one round's share of the room; nothing if there is none."""
    more_E = list(copies_E)
    while task.stored(more_E) - task.stored(copies_E) < max(task.spare // ROUNDS, 1) and (
        modules := task.copyable(more_E, task.spare)
    ):
        more_E[max(modules, key=lambda e: (task.block_load[e].sum() / more_E[e], -e))] += 1
    return more_E if more_E != list(copies_E) else None


def _continued(task: _Task, previous: Placement) -> list[Packing]:
    """What lies where now, with what is missing: as it is, and after as few moves as bring it within the limits."""
    copies_E, held = _still_held(task, previous)
    packings = []
    for even_out in (False, True):
        if even_out:
            copies_E = _needed_copies(task, copies_E)
        packing = task.packing(copies_E)
        for run, device in held:
            packing.add(run, device)
        missing = [
            part
            for module, copies in enumerate(copies_E)
            for copy in range(copies)
            for run in _missing(task.blocks_E[module], [r for r, _ in held if r[:2] == (module, copy)], module, copy)
            for part in _cut(task, packing, run, 1.0)
        ]
        if packing.fill(missing, task.scale(copies_E), task.split) is not None:
            continue
        if even_out:
            limits = task.limits(copies_E)
            packing.improve(limits, limits=limits, near=True)
            if task.split:
                packing.improve(limits, limits=limits, near=True, cut=True)
        if packing.used_P.max() <= task.slots:
            packings.append(packing)
    return packings


def _still_held(task: _Task, previous: Placement) -> tuple[list[int], list[tuple[Run, int]]]:
    """How often each module is to be stored, and the runs that can stay: those of devices and blocks that still exist.

    Copies that lost blocks, or for which there is no room, go; the first copy stays and gets back what it lost.
    """
    copies_E, held = [1] * len(task.blocks_E), []
    for module, blocks in enumerate(task.blocks_E):
        copies: dict[int, list[tuple[Run, int]]] = {}
        for piece in previous.pieces:
            count = min(piece.count, blocks - piece.first)
            if piece.module == module and piece.device < task.devices and count > 0 and (task.split or count == blocks):
                copies.setdefault(piece.copy, []).append((Run(module, 0, piece.first, count), piece.device))
        fullest_first = sorted(copies.values(), key=lambda runs: -sum(run.length for run, _ in runs))
        for copy, runs in enumerate(fullest_first):
            if copy and (
                sum(run.length for run, _ in runs) < blocks or task.stored(copies_E) + blocks > task.total + task.spare
            ):
                break
            copies_E[module] = copy + 1
            held += [(run._replace(copy=copy), device) for run, device in runs]
    return copies_E, held


def _missing(blocks: int, held: Sequence[Run], module: int, copy: int) -> list[Run]:
    """The runs of a copy that lie nowhere."""
    ends = [0, *(run.first + run.length for run in sorted(held))]
    starts = [*(run.first for run in sorted(held)), blocks]
    return [Run(module, copy, end, start - end) for end, start in zip(ends, starts, strict=True) if start > end]


def _relabelled(placement: Placement, previous: Placement) -> Placement:
    """The placement with its devices numbered so that the fewest blocks move."""
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
