"""The search behind placements: runs of blocks on devices, and the moves and exchanges that even them out.

Shape letters: E modules, P devices, N runs that lie somewhere, R runs of one device, S runs of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

LONGEST_LIST = 16  # lengths tried at either end of a run; of longer runs only some are
SWEEPS = 200
TINY = 1e-9


class Run(NamedTuple):
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

    def run(self, index: int) -> Run:
        return Run(int(self.module[index]), int(self.copy[index]), int(self.first[index]), int(self.length[index]))


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
        self._table = np.zeros((0, 5), np.int64)  # module, copy, first, count, device
        self._row_PE = np.full((devices, len(block_load)), -1)

    def runs(self) -> list[tuple[Run, int]]:
        """Each run and its device."""
        return [(Run(*row[:4]), row[4]) for row in self._table.tolist()]

    def load(self, run: Run) -> float:
        return float(self._before_EB[run.module, run.first + run.length] - self._before_EB[run.module, run.first])

    def add(self, run: Run, device: int) -> None:
        """Gives a run to a device. It grows the neighbouring run of the same copy where there is one."""
        self.load_P[device] += self.load(run)
        self.used_P[device] += run.length
        row = self._row_PE[device, run.module]
        if row < 0:
            self._row_PE[device, run.module] = len(self._table)
            self._table = np.vstack([self._table, [*run, device]])
            return
        _, copy, first, count, _ = self._table[row]
        assert copy == run.copy, "two copies of a module on a device"
        assert run.first in (first + count, first - run.length), "two runs of a module on a device"
        self._table[row, 2:4] = min(first, run.first), count + run.length

    def remove(self, run: Run, device: int) -> None:
        """Takes a run, or the first or last blocks of one, from a device."""
        self.load_P[device] = max(self.load_P[device] - self.load(run), 0)
        self.used_P[device] -= run.length
        row = self._row_PE[device, run.module]
        _, _, first, count, _ = self._table[row]
        if run.length < count:
            self._table[row, 2:4] = first + run.length * (first == run.first), count - run.length
            return
        self._row_PE[device, run.module] = -1
        if row != len(self._table) - 1:
            self._table[row] = self._table[-1]
            self._row_PE[self._table[row, 4], self._table[row, 0]] = row
        self._table = self._table[:-1]

    def fill(self, runs: Iterable[Run], scale: tuple[float, float], split: bool) -> Run | None:
        """Adds the largest run first, always where load and blocks then stay lowest.

        Args:
            runs: what to add.
            scale: load and blocks that count as one.
            split: cut a run that fits nowhere.

        Returns:
            A run that finds no room, if there is one.
        """

        def size(run: Run) -> float:
            return max(self.load(run) / scale[0], run.length / scale[1])

        for run in sorted(runs, key=lambda run: (-size(run), run)):
            rest = run
            while rest.length:
                admits_P, _ = self._admits(rest, np.arange(self.devices))
                room_P = np.where(admits_P, self.slots - self.used_P, 0)
                if (room_P >= rest.length).any():
                    level_P = np.maximum(
                        (self.load_P + self.load(rest)) / scale[0], (self.used_P + rest.length) / scale[1]
                    )
                    self.add(rest, int(np.argmin(np.where(room_P >= rest.length, level_P, np.inf))))
                    break
                count = int(room_P.max())
                if count <= 0 or not split:
                    return run
                self.add(rest._replace(length=count), int(np.argmax(room_P)))
                rest = rest._replace(first=rest.first + count, length=rest.length - count)
        return None

    def improve(
        self,
        scale: tuple[float, float],
        *,
        limits: tuple[float, float] = (-1, -1),
        cut: bool = False,
        near: bool = False,
    ) -> None:
        """Moves and exchanges runs until nothing lowers the cost.

        Args:
            scale: load and blocks that count as one.
            limits: load and blocks up to which a device is left alone.
            cut: runs may be cut.
            near: prefer exchanges of few blocks.
        """
        for _ in range(SWEEPS):
            level_P = np.maximum(self.load_P / scale[0], self.used_P / scale[1])
            changed = False
            for device in np.argsort(-level_P, kind="stable").tolist():
                if self.load_P[device] > limits[0] * (1 + TINY) or self.used_P[device] > limits[1]:
                    changed |= self._exchange(device, scale, cut, near)
            if not changed:
                return

    def _exchange(self, device: int, scale: tuple[float, float], cut: bool, near: bool) -> bool:
        """Makes the best exchange of a run of this device for one of another device, or for nothing."""
        runs = self._all_runs(cut)
        give_R = runs.where(runs.device == device)
        if not len(give_R.module):
            return False
        take_S = _with_nothing(runs.where(runs.device != device), np.delete(np.arange(self.devices), device))
        give = give_R.column()
        blocks_RS, load_RS = give.length - take_S.length, give.load - take_S.load
        gives_RS, give_joins_RS = self._admits(give, take_S.device)
        takes_S, take_joins_S = self._admits(take_S, np.array(device))
        here, there_S = self.used_P[device], self.used_P[take_S.device]
        allowed_RS = gives_RS & takes_S & (give.module != take_S.module)
        allowed_RS &= (here - blocks_RS <= max(self.slots, here)) & (there_S + blocks_RS <= self.slots)

        def cost(load: np.ndarray, blocks: np.ndarray) -> np.ndarray:
            return _steep(np.maximum(load, 0) / scale[0]) + _steep(blocks / scale[1])

        now_S = cost(self.load_P[device], here) + cost(self.load_P[take_S.device], there_S)
        gain_RS = now_S - cost(self.load_P[device] - load_RS, here - blocks_RS)
        gain_RS -= cost(self.load_P[take_S.device] + load_RS, there_S + blocks_RS)
        allowed_RS &= gain_RS > TINY * now_S
        if cut:
            more_RS = give.cut.astype(int) - give_joins_RS + take_S.cut - take_joins_S  # runs there are afterwards
            gain_RS = gain_RS / 2.0**more_RS
        if near:
            gain_RS = gain_RS / (give.length + take_S.length)
        r, s = np.unravel_index(np.argmax(np.where(allowed_RS, gain_RS, -np.inf)), gain_RS.shape)
        if not allowed_RS[r, s]:
            return False
        given, taken, other = give_R.run(int(r)), take_S.run(int(s)), int(take_S.device[s])
        self.remove(given, device)
        if taken.length:
            self.remove(taken, other)
            self.add(taken, device)
        self.add(given, other)
        return True

    def _admits(self, runs: Run | _Runs, device: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether a device may hold a run too, as far as its other runs go, and whether the two then become one."""
        row = np.where(np.asarray(runs.module) < 0, -1, self._row_PE[device, runs.module])
        _, copy, first, count, _ = np.moveaxis(np.vstack([self._table, [-1] * 5])[row], -1, 0)
        meet = (first + count == runs.first) | (runs.first + runs.length == first)
        joins = (row >= 0) & (copy == runs.copy) & meet
        return (row < 0) | joins, joins

    def _all_runs(self, cut: bool) -> _Runs:
        """What can move: every run, and with `cut` also the blocks at either end of each."""
        whole_N = self._table[:, 3]
        rows, firsts, lengths = [np.arange(len(whole_N))], [self._table[:, 2]], [whole_N]
        for end in _lengths(int(whole_N.max(initial=0))) if cut else ():
            row = np.flatnonzero(whole_N > end)
            first = self._table[row, 2]
            rows += [row, row]
            firsts += [first, first + whole_N[row] - end]
            lengths += [np.full(len(row), end)] * 2
        row, first, length = np.concatenate(rows), np.concatenate(firsts), np.concatenate(lengths)
        module, copy, _, whole, device = self._table[row].T
        load = self._before_EB[module, first + length] - self._before_EB[module, first]
        return _Runs(module, copy, first, length, device, load, length < whole)


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
