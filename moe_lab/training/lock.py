"""One process per run folder: a lock that a killed process does not leave behind."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import socket
from pathlib import Path

import psutil

from moe_lab.errors import Unavailable
from moe_lab.files import UNSUPPORTED, exclusive

# psutil derives a start time from the boot time, which moves a little when the clock is corrected. No process
# id comes round again within seconds of its former owner's start.
_SAME_START_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process, told apart from a later one with the same id by its start time."""

    pid: int
    process_started: float
    host: str

    @staticmethod
    def current() -> ProcessIdentity:
        """Returns the identity of this process."""
        pid = os.getpid()
        return ProcessIdentity(pid=pid, process_started=psutil.Process(pid).create_time(), host=socket.gethostname())

    def is_gone(self) -> bool:
        """Tells whether the process has ended; one on another host cannot be asked and counts as alive."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.process_started) < _SAME_START_SECONDS
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


class RunLock:
    """The right to write into one run folder.

    Two things say who has it. The lock file names the process, for people and for hosts that cannot ask each other's
    kernel. And a record lock on the file beside it, held as long as the process lives, shows the holder to every
    process of this kernel, also to those in other containers, to whom its number means nothing. Forked children do not
    inherit a record lock, and a killed process leaves none. The lock file's own `flock` guards only the moment in which
    both are looked at and changed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self) -> None:
        """Takes the lock, also from a process that is gone.

        Raises:
            Unavailable: another process holds it.
        """
        with self._path.open("a+", encoding="utf-8") as file:
            exclusive(file.fileno())
            file.seek(0)
            holder = _decode(file.read())
            if not self._hold():
                raise Unavailable(self._refusal(holder) + ": wait for it or stop it")
            if holder is not None and not holder.is_gone():
                self._let_go()
                raise Unavailable(
                    f"{self._refusal(holder)}: wait for it or stop it; if it is gone, delete {self._path} and run the "
                    "same command again"
                )
            file.truncate(0)
            file.write(json.dumps(dataclasses.asdict(ProcessIdentity.current())))

    def _refusal(self, holder: ProcessIdentity | None) -> str:
        who = f"process {holder.pid} on {holder.host}" if holder else "another process"
        elsewhere = " (its number in another container)" if holder is not None and holder.is_gone() else ""
        return f"{self._path.parent} is being written by {who}{elsewhere}"

    def _hold(self) -> bool:
        """Takes the record lock; False if a living process has it, and be it this one."""
        path = _record(self._path)
        if (os.getpid(), path) in _held:  # a process that closes the file again lets go of what it holds itself
            return False
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            return error.errno in UNSUPPORTED
        _held[os.getpid(), path] = descriptor
        return True

    def _let_go(self) -> None:
        descriptor = _held.pop((os.getpid(), _record(self._path)), None)
        if descriptor is not None:
            os.close(descriptor)

    def release(self) -> None:
        """Lets go of what this process holds, and empties the lock file if it names this process."""
        if self._path.exists():
            with self._path.open("a+", encoding="utf-8") as file:
                exclusive(file.fileno())
                file.seek(0)
                holder = _decode(file.read())
                if holder is not None and holder.pid == os.getpid() and holder.host == socket.gethostname():
                    file.truncate(0)
        self._let_go()


_held: dict[tuple[int, Path], int] = {}
"""Descriptors of the record locks that a process has; in a forked child the key holds its parent's number."""


def is_held(path: Path) -> bool:
    """Tells whether a living process of this kernel has the run lock at `path`, in whatever container it runs."""
    record = _record(path)
    if (os.getpid(), record) in _held:  # asking would let it go
        return True
    try:
        with path.open("rb") as lock, record.open("rb") as held:
            # The question takes the record lock for a moment, in which nobody must be refused for it.
            fcntl.flock(lock, fcntl.LOCK_SH)
            fcntl.lockf(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _decode(text: str) -> ProcessIdentity | None:
    """Returns the holder; None for an empty file, or one whose writer was killed within its single write."""
    try:
        return ProcessIdentity(**json.loads(text))
    except (ValueError, TypeError):
        return None
