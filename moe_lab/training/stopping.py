"""SIGINT and SIGTERM while a run trains: the step that is running ends and is saved before the work stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked for the end."""

    def __init__(self) -> None:
        self.signum: int | None = None


@contextlib.contextmanager
def stop_between_steps() -> Iterator[Stop]:
    """Notes the first SIGINT or SIGTERM for the loop to look at; a second one does what it did before.

    Signals reach the main thread only; in another one nothing is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.getsignal(signum) for signum in _STOPS}

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        restore()

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    for signum in _STOPS:
        signal.signal(signum, note)
    try:
        yield stop
    finally:
        restore()
