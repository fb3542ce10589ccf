"""One process per run folder: a lock that a killed process does not leave behind."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from pathlib import Path

import psutil

from moe_lab.errors import LabError
from moe_lab.training.durable import exclusive

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
    """The right to write into one run folder, held by the process whose identity the lock file names.

    The file's own `flock` guards only the moment in which the content is read and replaced: held for longer
    it would pass to forked children and outlive a killed parent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self) -> None:
        """Takes the lock, also from a process that is gone.

        Raises:
            LabError: another process holds it.
        """
        with self._path.open("a+", encoding="utf-8") as file:
            exclusive(file.fileno())
            file.seek(0)
            holder = _decode(file.read())
            if holder is not None and not holder.is_gone():
                raise LabError(
                    f"{self._path.parent} is being written by process {holder.pid} on {holder.host}: wait "
                    f"for it or stop it; if it is gone, delete {self._path} and run the same command again"
                )
            file.truncate(0)
            file.write(json.dumps(dataclasses.asdict(ProcessIdentity.current())))

    def release(self) -> None:
        """Empties the lock file if it names this process."""
        if not self._path.exists():
            return
        with self._path.open("a+", encoding="utf-8") as file:
            exclusive(file.fileno())
            file.seek(0)
            holder = _decode(file.read())
            if holder is not None and holder.pid == os.getpid() and holder.host == socket.gethostname():
                file.truncate(0)


def _decode(text: str) -> ProcessIdentity | None:
    """Returns the holder; None for an empty file, or one whose writer was killed within its single write."""
    try:
        return ProcessIdentity(**json.loads(text))
    except (ValueError, TypeError):
        return None
