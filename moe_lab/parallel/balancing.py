"""How a layer's modules come to lie evenly: the limits, how often each module is stored, and where the search begins.

Shape letters: E modules, P devices.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_lab.errors import LabError
from moe_lab.parallel.bounds import lower_bound
from moe_lab.parallel.packing import TINY, BlockRun, Packing

CANDIDATES = 8  # modules that are looked at when one more copy is needed
NEAR = 1.02  # this close to a goal is as good as there
ROUNDS = 4  # how often more copies are tried


class _Start(NamedTuple):
    """How a search begins."""

    share: float  # runs above this share of the load limit are cut first
    load: float = 1.0  # the mean load and the mean blocks count as one, times this: inf to leave one of them out
    blocks: float = 1.0
    tight: bool = False  # to where the least room is left: for modules that hardly fit


SPLIT_STARTS = (_Start(1.0), _Start(0.7), _Start(0.5), _Start(0.35), _Start(np.inf), _Start(0.15))
WHOLE_STARTS = (
    _Start(np.inf),
    _Start(np.inf, blocks=np.inf),
    _Start(np.inf, load=np.inf),
    _Start(np.inf, load=np.inf, tight=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
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

    @property
    def even_load(self) -> float:
        """Load up to which a device counts as even."""
        return (1 + self.slack) * self.mean_load

    @functools.cached_property
    def load_limit(self) -> float:
        """Load a device should have at most, with all the copies that there may be."""
        if self.spare:
            bound = max(self.unit(module) / self.most(module) for module in range(len(self.blocks_E)))
        else:
            bound = self.reach([1] * len(self.blocks_E))
        return max(self.even_load, bound)

    def block_limit(self, copies_E: Sequence[int]) -> int:
        """Blocks a device should hold at most where modules are stored this often."""
        bound = lower_bound(self.blocks_E, self.block_load, self.devices, split=self.split, copies_E=copies_E).blocks
        return max(1, min(self.slots, max(int((1 + self.slack) * self.stored(copies_E) / self.devices + TINY), bound)))

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


def make_task(
    blocks_E: Sequence[int],
    block_load: Sequence[np.ndarray],
    devices: int,
    split: bool,
    replicate: float,
    slots: int | None,
    slack: float,
) -> Task:
    """Checks what `place` is asked for, and finds out how many blocks copies may take."""
    loads = [np.asarray(load, np.float64) for load in block_load]
    if len(loads) != len(blocks_E):
        raise LabError(f"{len(blocks_E)} modules, {len(loads)} loads: give one array of block loads for each module")
    for module, (blocks, load) in enumerate(zip(blocks_E, loads, strict=True)):
        if load.shape != (blocks,):
            raise LabError(f"module {module} has {blocks} blocks, its load has shape {load.shape}: give one per block")
        if not np.isfinite(load).all() or (load < 0).any():
            raise LabError(f"module {module}: a load is negative or not finite; give token counts, 0 for unused blocks")
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
    spare = min(int(replicate * total + TINY), slots * devices - total)
    most = math.ceil((1 + max(replicate, slack)) * total / devices - TINY)
    return Task(
        blocks_E=tuple(int(blocks) for blocks in blocks_E),
        block_load=loads,
        devices=devices,
        split=split,
        slots=min(slots, most) if split else slots,
        spare=spare,
        even_spare=min(spare, max(0, int((1 + replicate) * total / devices + TINY) * devices - total)),
        slack=slack,
    )


def packed_afresh(task: Task) -> Packing:
    """The first packing within the limits, with as few copies as reach them; else the best one."""
    copies_E = _needed_copies(task, [1] * len(task.blocks_E))
    reach = task.reach(copies_E)
    aim = 1.0 if reach <= task.even_load else NEAR * reach / task.load_limit
    packings: list[Packing] = []
    for _ in range(ROUNDS):
        for start in SPLIT_STARTS if task.split else WHOLE_STARTS:
            if start.tight and packings:
                continue
            packing = _packed(task, copies_E, start)
            if packing is not None and task.excess(packing) <= aim:
                return packing
            packings += [packing] if packing is not None else []
        if packings and min(map(task.excess, packings)) <= NEAR * aim:
            break  # more copies would gain next to nothing
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


def _packed(task: Task, copies_E: Sequence[int], start: _Start) -> Packing | None:
    """Places every module and evens out the devices.

    Returns:
        The packing, with fewer copies where they find no room; nothing if modules find none.
    """
    copies_E = list(copies_E)
    while True:
        packing = task.packing(copies_E)
        scale, limits = task.scale(copies_E), task.limits(copies_E)
        largest = (start.share * limits[0], limits[1]) if task.split else (np.inf, np.inf)
        runs = [
            part
            for module, copies in enumerate(copies_E)
            for copy in range(copies)
            for part in _cut(packing, BlockRun(module, copy, 0, task.blocks_E[module]), *largest)
        ]
        stuck = packing.fill(runs, (scale[0] * start.load, scale[1] * start.blocks), task.split, start.tight)
        if stuck is None:
            break
        module = stuck.module if copies_E[stuck.module] > 1 else int(np.argmax(copies_E))
        if copies_E[module] < 2:
            return None
        copies_E[module] -= 1
    packing.improve(scale, limits=limits if task.split else (-1, -1))
    if task.split:
        packing.improve(limits, limits=limits, cut=True)
    return packing


def _cut(packing: Packing, run: BlockRun, load: float, blocks: float) -> list[BlockRun]:
    """The run in parts of at most this load, if they have more than one block, and at most so many blocks."""
    parts = []
    start, end = run.first, run.first + run.length
    for stop in range(run.first + 1, end + 1):
        longer = run._replace(first=start, length=stop + 1 - start)
        if stop == end or longer.length > blocks or packing.load(longer) > load:
            parts.append(longer._replace(length=stop - start))
            start = stop
    return parts


def _needed_copies(task: Task, copies_E: Sequence[int]) -> list[int]:
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


def _more_copies(task: Task, copies_E: Sequence[int]) -> list[int] | None:
    """Stores the modules of the most load more often, with one round's share of the room; nothing if there is none."""
    more_E = list(copies_E)
    while task.stored(more_E) - task.stored(copies_E) < max(task.spare // ROUNDS, 1):
        modules = task.copyable(more_E, task.even_spare)
        if not modules and more_E == list(copies_E):
            modules = task.copyable(more_E, task.spare)
        if not modules:
            break
        more_E[max(modules, key=lambda e: (task.block_load[e].sum() / more_E[e], -e))] += 1
    return more_E if more_E != list(copies_E) else None


def packed_on(task: Task, before: Sequence[tuple[BlockRun, int]]) -> list[Packing]:
    """What lies where now, with what is missing: as it is, and after as few moves as bring it within the limits."""
    copies_E, held = _still_held(task, before)
    packings = []
    for even_out in (False, True):
        if even_out:
            copies_E = _needed_copies(task, copies_E)
        packing, limits = task.packing(copies_E), task.limits(copies_E)
        for run, device in held:
            packing.add(run, device)
        packing.settle()
        missing = [
            part
            for module, copies in enumerate(copies_E)
            for copy in range(copies)
            for run in _missing(task.blocks_E[module], [r for r, _ in held if r[:2] == (module, copy)], module, copy)
            for part in _cut(packing, run, *(limits if task.split else (np.inf, np.inf)))
        ]
        if packing.fill(missing, task.scale(copies_E), task.split, tight=False) is not None:
            continue
        if even_out:
            packing.improve(limits, limits=limits)
            if task.split:
                packing.improve(limits, limits=limits, cut=True)
        if packing.used_P.max() <= task.slots:
            packings.append(packing)
    return packings


def _still_held(task: Task, before: Sequence[tuple[BlockRun, int]]) -> tuple[list[int], list[tuple[BlockRun, int]]]:
    """How often each module is to be stored, and the runs that can stay: those of devices and blocks that still exist.

    Copies that lost blocks, or for which there is no room, go; the first copy stays and gets back what it lost.
    """
    copies_E, held = [1] * len(task.blocks_E), []
    runs_E: list[dict[int, list[tuple[BlockRun, int]]]] = [{} for _ in task.blocks_E]
    for run, device in before:
        length = min(run.length, task.blocks_E[run.module] - run.first) if run.module < len(runs_E) else 0
        if device < task.devices and length > 0 and (task.split or length == task.blocks_E[run.module]):
            runs_E[run.module].setdefault(run.copy, []).append((run._replace(length=length), device))
    for module, blocks in enumerate(task.blocks_E):
        held_by = {copy: sum(run.length for run, _ in runs) for copy, runs in runs_E[module].items()}
        for copy, old in enumerate(sorted(held_by, key=lambda copy: -held_by[copy])):
            if copy and (held_by[old] < blocks or task.stored(copies_E) + blocks > task.total + task.spare):
                break
            copies_E[module] = copy + 1
            held += [(run._replace(copy=copy), device) for run, device in runs_E[module][old]]
    return copies_E, held


def _missing(blocks: int, held: Sequence[BlockRun], module: int, copy: int) -> list[BlockRun]:
    """The runs of a copy that lie nowhere."""
    ends = [0, *(run.first + run.length for run in sorted(held))]
    starts = [*(run.first for run in sorted(held)), blocks]
    return [BlockRun(module, copy, end, start - end) for end, start in zip(ends, starts, strict=True) if start > end]
