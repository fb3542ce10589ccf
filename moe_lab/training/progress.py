"""How long work shows itself: a live line on a terminal, plain lines elsewhere, nothing in tests."""

from __future__ import annotations

import abc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from moe_lab.training.processes import is_first


class Stage(abc.ABC):
    """One piece of work of known length, such as one training."""

    @abc.abstractmethod
    def status(self, text: str) -> None:
        """Says what happens while no step is done, such as compiling."""

    @abc.abstractmethod
    def update(self, done: int, loss: float | None, rate: float, seconds_per_step: float) -> None:
        """Says how far the work is: steps done, the loss, units per second, and seconds per step."""


class Progress(abc.ABC):
    """Shows any number of stages, in sequence or nested; a pipeline hands one `Progress` to all its parts."""

    @abc.abstractmethod
    @contextmanager
    def stage(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Stage]:
        """Shows a stage of `total` steps, of which `done` were done by an earlier process."""

    @abc.abstractmethod
    def note(self, text: str) -> None:
        """Says one thing that the person should know."""


class _Line(Stage):
    """The state of a stage and its wording, which both the live and the plain display print."""

    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._activity = "starting"
        self._loss: float | None = None
        self._rate = 0.0
        self._left: float | None = None

    def status(self, text: str) -> None:
        self._activity = text

    def update(self, done: int, loss: float | None, rate: float, seconds_per_step: float) -> None:
        self.done, self._loss, self._rate, self._activity = done, loss, rate, ""
        self._left = (self.total - done) * seconds_per_step

    def parts(self) -> list[str]:
        """Returns the columns: label, steps, loss or activity, speed, time left."""
        loss = self._activity or (f"loss {self._loss:.4f}" if self._loss is not None else "")
        rate = f"{_short(self._rate)} {self.unit}/s" if self._rate else ""
        left = f"{_duration(self._left)} left" if self._left else ""
        return [self.label, f"step {self.done}/{self.total}", loss, rate, left]


class PlainProgress(Progress):
    """Prints a line when a stage begins and ends, and about every `every` seconds in between."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._every = every

    @contextmanager
    def stage(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Stage]:
        line = _PlainLine(label, total, unit, done, self)
        yield line
        line.close()

    def note(self, text: str) -> None:
        self.print(f"note: {text}")

    def print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    @property
    def every(self) -> float:
        return self._every


class _PlainLine(_Line):
    def __init__(self, label: str, total: int, unit: str, done: int, display: PlainProgress) -> None:
        super().__init__(label, total, unit, done)
        self._display = display
        self._printed_at = time.monotonic()
        self._printed_done = -1

    def status(self, text: str) -> None:
        super().status(text)
        self._print()

    def update(self, done: int, loss: float | None, rate: float, seconds_per_step: float) -> None:
        super().update(done, loss, rate, seconds_per_step)
        if time.monotonic() - self._printed_at >= self._display.every:
            self._print()

    def close(self) -> None:
        if self._printed_done != self.done:
            self._print()

    def _print(self) -> None:
        self._printed_at, self._printed_done = time.monotonic(), self.done
        self._display.print("  ".join(part for part in self.parts() if part))


class TerminalProgress(Progress):
    """Keeps one live line per stage at the bottom of a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._lines: list[_Line] = []
        self._live: Live | None = None

    @contextmanager
    def stage(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Stage]:
        line = _Line(label, total, unit, done)
        self._lines.append(line)
        if self._live is not None:  # a stage inside a stage joins the display
            yield line
            return
        with Live(console=self._console, get_renderable=self._table, refresh_per_second=4) as live:
            self._live = live
            try:
                yield line
            finally:
                live.refresh()
                self._live = None
                self._lines.clear()

    def note(self, text: str) -> None:
        self._console.print(Text(f"note: {text}", style="yellow"))

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for line in self._lines:
            table.add_row(*(Text(part) for part in line.parts()))
        return table


class SilentProgress(Progress):
    """Shows nothing."""

    @contextmanager
    def stage(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Stage]:
        yield _Line(label, total, unit, done)

    def note(self, text: str) -> None:
        pass


def make_progress(stream: TextIO | None = None) -> Progress:
    """Returns the live display if the stream (standard error) is a terminal, and plain lines otherwise.

    Of several processes the first one speaks for all.
    """
    if not is_first():
        return SilentProgress()
    stream = stream or sys.stderr
    return TerminalProgress(Console(file=stream)) if stream.isatty() else PlainProgress(stream)


def _short(number: float) -> str:
    """Returns three digits and a unit: 12.3k."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def _duration(seconds: float) -> str:
    """Returns 1h02m, 3m04s or 5s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
