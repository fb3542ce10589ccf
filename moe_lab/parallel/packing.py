"""The search behind placements: runs of blocks on devices, and the moves and exchanges that even them out.

Shape letters: E modules, P devices, N runs that lie somewhere, R runs of one device, O runs of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

LONGEST_LIST = 16  # lengths tried at either end of a run; of longer runs only some are
SWEEPS = 200
TINY = 1e-9


class BlockRun(NamedTuple):
    """Neighbouring blocks of one copy of a module."""

    module: int
    copy: int
    first: int
    length: int


class _Runs(NamedTuple):
    """Runs in columns. Module -1 stands for no run at all: what a device gives for a run it receives for nothing."""

    module: np.ndarray
    copy: np.ndarray
    first: np.ndarray
    length: np.ndarray
    device: np.ndarray
    load: np.ndarray
    cut: np.ndarray  # bool: only a part of what the device holds

    def where(self, chosen: np.ndarray) -> _Runs:
        return _Runs(*(column[chosen] for column in self))

    def column(self) -> _Runs:
        return _Runs(*(column[:, None] for column in self))

    def run(self, index: int) -> BlockRun:
        return BlockRun(int(self.module[index]), int(self.copy[index]), int(self.first[index]), int(self.length[index]))


class Packing:
    """Runs on devices; a device holds at most one run of a module."""

    def __init__(self, block_load: Sequence[np.ndarray], copies_E: Sequence[int], devices: int, slots: int):
        """Copies of a module share its load evenly. `slots`: blocks a device may be given."""
        self.devices, self.slots = devices, slots
        self.copies_E = list(copies_E)
        longest = max((len(load) for load in block_load), default=0)
        self._before_EB = np.zeros((len(block_load), longest + 1))  # load of a module's blocks before this one
        for module, load in enumerate(block_load):
            self._before_EB[module, 1 : len(load) + 1] = np.cumsum(load) / max(self.copies_E[module], 1)
        self.load_P = np.zeros(devices)
        self.used_P = np.zeros(devices, np.int64)
        # The run of each module that a device holds: none where its length is 0.
        self._copy_PE, self._first_PE, self._length_PE = np.zeros((3, devices, len(block_load)), np.int64)
        self._home_PEB: np.ndarray | None = None  # blocks of the module before this one that are at home on the device

    def runs(self) -> list[tuple[BlockRun, int]]:
        """Each run and its device."""
        runs = self._all_runs(cut=False)
        return [(runs.run(index), int(device)) for index, device in enumerate(runs.device)]

    def load(self, run: BlockRun) -> float:
        return float(self._before_EB[run.module, run.first + run.length] - self._before_EB[run.module, run.first])

    def add(self, run: BlockRun, device: int) -> None:
        """Gives a run to a device. It grows the neighbouring run of the same copy where there is one."""
        admitted, joins = self._admits(run, np.array(device))
        assert admitted, "two runs of a module on a device"
        at = device, run.module
        self.load_P[device] += self.load(run)
        self.used_P[device] += run.length
        self._copy_PE[at] = run.copy
        self._first_PE[at] = min(self._first_PE[at], run.first) if joins else run.first
        self._length_PE[at] += run.length

    def remove(self, run: BlockRun, device: int) -> None:
        """Takes a run, or the first or last blocks of one, from a device."""
        at = device, run.module
        self.load_P[device] = max(self.load_P[device] - self.load(run), 0)
        self.used_P[device] -= run.length
        if run.first == self._first_PE[at]:
            self._first_PE[at] += run.length
        self._length_PE[at] -= run.length

    def settle(self) -> None:
        """From now on the blocks are at home where they lie: few of them should leave."""
        self._home_PEB = np.zeros((self.devices, *self._before_EB.shape), np.int64)
        for run, device in self.runs():
            self._home_PEB[device, run.module, run.first + 1 : run.first + run.length + 1] = 1
        self._home_PEB = np.cumsum(self._home_PEB, 2)

    def fill(self, runs: Iterable[BlockRun], scale: tuple[float, float], split: bool, tight: bool) -> BlockRun | None:
        """Adds the largest run first, always where load and blocks then stay lowest.

        Args:
            runs: what to add.
            scale: load and blocks that count as one.
            split: cut a run that fits nowhere.
            tight: to where the least room is left instead.

        Returns:
            A run that finds no room, if there is one.
        """

        def size(run: BlockRun) -> float:
            return max(self.load(run) / scale[0], run.length / scale[1])

        for run in sorted(runs, key=lambda run: (-size(run), run)):
            rest = run
            while rest.length:
                admits_P, _ = self._admits(rest, np.arange(self.devices))
                room_P = np.where(admits_P, self.slots - self.used_P, 0)
                level_P = np.maximum((self.load_P + self.load(rest)) / scale[0], (self.used_P + rest.length) / scale[1])
                fits_P = room_P >= rest.length
                if fits_P.any():
                    self.add(rest, int(np.argmin(np.where(fits_P, room_P if tight else level_P, np.inf))))
                    break
                starts_P, _ = self._admits(rest._replace(length=1), np.arange(self.devices))
                room_P = np.where(starts_P, self.slots - self.used_P, 0)
                most = int(room_P.max())
                if most <= 0 or not split:
                    return run
                self.add(rest._replace(length=most), int(np.argmax(room_P)))
                rest = rest._replace(first=rest.first + most, length=rest.length - most)
        return None

    def improve(self, scale: tuple[float, float], *, limits: tuple[float, float] = (-1, -1), cut: bool = False) -> None:
        """Moves and exchanges runs until nothing lowers the cost, the sum over devices of a high power of both levels.

        Args:
            scale: load and blocks that count as one.
            limits: load and blocks up to which a device is left alone.
            cut: runs may be cut.
        """
        if self.devices == 1:
            return
        runs = self._all_runs(cut)
        for _ in range(SWEEPS):
            level_P = np.maximum(self.load_P / scale[0], self.used_P / scale[1])
            changed = False
            for device in np.argsort(-level_P, kind="stable").tolist():
                over = self.load_P[device] > limits[0] * (1 + TINY) or self.used_P[device] > limits[1]
                if over and self._exchange(runs, device, scale, cut):
                    runs, changed = self._all_runs(cut), True
            if not changed:
                return

    def _exchange(self, runs: _Runs, device: int, scale: tuple[float, float], cut: bool) -> bool:
        """Makes the best exchange of a run of this device for one of another device, or for nothing."""
        give_R = runs.where(runs.device == device)
        if not len(give_R.module):
            return False
        take_O = _with_nothing(runs.where(runs.device != device), np.delete(np.arange(self.devices), device))
        give = give_R.column()
        blocks_RO, load_RO = give.length - take_O.length, give.load - take_O.load
        gives_RO, give_joins_RO = self._admits(give, take_O.device)
        takes_O, take_joins_O = self._admits(take_O, np.array(device))
        here, there_O = self.used_P[device], self.used_P[take_O.device]
        allowed_RO = gives_RO & takes_O & (give.module != take_O.module)
        allowed_RO &= (here - blocks_RO <= max(self.slots, here)) & (there_O + blocks_RO <= self.slots)

        least = 0.0 if self._home_PEB is None else 1.0  # within the limits, nothing is gained by moving more

        def cost(load: np.ndarray, blocks: np.ndarray) -> np.ndarray:
            return _steep(np.maximum(load / scale[0], least)) + _steep(np.maximum(blocks / scale[1], least))

        now_O = cost(self.load_P[device], here) + cost(self.load_P[take_O.device], there_O)
        gain_RO = now_O - cost(self.load_P[device] - load_RO, here - blocks_RO)
        gain_RO -= cost(self.load_P[take_O.device] + load_RO, there_O + blocks_RO)
        allowed_RO &= gain_RO > TINY * now_O
        if cut:
            more_RO = give.cut.astype(int) - give_joins_RO + take_O.cut - take_joins_O  # runs there are afterwards
            gain_RO = gain_RO / 2.0**more_RO
        if self._home_PEB is not None:
            leaving_RO = self._at_home(give, np.array(device)) - self._at_home(give, take_O.device)
            leaving_RO = leaving_RO + self._at_home(take_O, take_O.device) - self._at_home(take_O, np.array(device))
            gain_RO = gain_RO / np.maximum(leaving_RO, 0.5)
        r, s = np.unravel_index(np.argmax(np.where(allowed_RO, gain_RO, -np.inf)), gain_RO.shape)
        if not allowed_RO[r, s]:
            return False
        given, taken, other = give_R.run(int(r)), take_O.run(int(s)), int(take_O.device[s])
        self.remove(given, device)
        if taken.length:
            self.remove(taken, other)
            self.add(taken, device)
        self.add(given, other)
        return True

    def _at_home(self, runs: _Runs, device: np.ndarray) -> np.ndarray:
        """How many blocks of each run are at home on a device."""
        assert self._home_PEB is not None
        before = self._home_PEB[device, runs.module, runs.first]
        return self._home_PEB[device, runs.module, runs.first + runs.length] - before

    def _admits(self, runs: BlockRun | _Runs, device: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether a device may hold a run too, as far as its other runs go, and whether the two then become one."""
        at = device, runs.module
        first, length = self._first_PE[at], np.where(np.asarray(runs.module) < 0, 0, self._length_PE[at])
        meet = (first + length == runs.first) | (runs.first + runs.length == first)
        joins = (length > 0) & (self._copy_PE[at] == runs.copy) & meet
        return (length == 0) | joins, joins

    def _all_runs(self, cut: bool) -> _Runs:
        """What can move: every run, and with `cut` also the blocks at either end of each."""
        device_N, module_N = np.nonzero(self._length_PE)
        first_N, length_N = self._first_PE[device_N, module_N], self._length_PE[device_N, module_N]
        rows, firsts, lengths = [np.arange(len(length_N))], [first_N], [length_N]
        for end in _lengths(int(length_N.max(initial=0))) if cut else ():
            row = np.flatnonzero(length_N > end)
            rows += [row, row]
            firsts += [first_N[row], first_N[row] + length_N[row] - end]
            lengths += [np.full(len(row), end)] * 2
        row, first, length = np.concatenate(rows), np.concatenate(firsts), np.concatenate(lengths)
        device, module = device_N[row], module_N[row]
        load = self._before_EB[module, first + length] - self._before_EB[module, first]
        return _Runs(module, self._copy_PE[device, module], first, length, device, load, length < length_N[row])


def _steep(level: np.ndarray) -> np.ndarray:
    """level ** 24: the sum over devices is ruled by the fullest ones, and still tells two of them from one."""
    eighth = np.square(np.square(np.square(level)))
    return eighth * eighth * eighth


def _with_nothing(runs: _Runs, devices: np.ndarray) -> _Runs:
    """The runs, and one of no blocks on each device."""
    none, zero = np.full(len(devices), -1), np.zeros(len(devices), np.int64)
    nothing = _Runs(none, none, zero, zero, devices, np.zeros(len(devices)), np.zeros(len(devices), bool))
    return _Runs(*(np.concatenate(pair) for pair in zip(runs, nothing, strict=True)))


def _lengths(longest: int) -> list[int]:
    """Lengths below the longest one: all of them where they are few, else ever wider apart."""
    if longest <= LONGEST_LIST:
        return list(range(1, longest))
    return sorted({int(x) for x in np.geomspace(1, longest - 1, LONGEST_LIST)})
