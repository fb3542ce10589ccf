"""`moe-lab serve` in a process of its own: started, watched, and ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from moe_lab.bench.load.client import Place
from moe_lab.errors import Unavailable

LISTENING = re.compile(r"listening on http://([\w.]+):(\d+)")
MISTAKE = "error: "
"""Begins the line of a mistake, which is the last."""
GRACE = 10.0
"""Seconds to finish in, once it is told to end."""


class Server:
    """A child process that serves; a thread reads what it says, because a full pipe would stop it.

    Args:
        process: with its standard error as text.
        tell: told of each line until it listens.
    """

    def __init__(self, process: subprocess.Popen[str], tell: Callable[[str], None]) -> None:
        self._process, self._tell = process, tell
        self._said: deque[str] = deque(maxlen=20)
        self._place: Future[Place | None] = Future()
        self._listener = threading.Thread(target=self._listen, name="server's standard error", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in filter(None, map(str.strip, self._process.stderr)):
            self._said.append(line)
            if self._place.done():
                continue
            if found := LISTENING.match(line):
                self._place.set_result((found[1], int(found[2])))
            elif not line.startswith(MISTAKE):
                self._tell(line)
        if not self._place.done():
            self._place.set_result(None)

    @property
    def last_line(self) -> str:
        """What it said last, as a sentence."""
        said = self._said[-1].removeprefix(MISTAKE) if self._said else "it said nothing"
        return said if said.endswith(".") else f"{said}."

    def place(self) -> Place:
        """Where it listens, once it does.

        Raises:
            Unavailable: it ended before that; its last line says why.
        """
        place = self._place.result()
        if place is None:
            raise Unavailable(f"the server did not start: {self.last_line} Mend that, then run the same command again")
        return place

    def require_alive(self) -> None:
        """Raises `Unavailable` if it has ended."""
        if (code := self._process.poll()) is not None:
            self._listener.join(GRACE)
            raise Unavailable(
                f"the server ended under load with exit code {code}: {self.last_line} "
                "Try fewer --slots or lower --rates, or start `moe-lab serve` by itself to see why"
            )

    def end(self) -> None:
        """Asks it to end, and insists after a while."""
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(GRACE)


@contextlib.contextmanager
def serving(arguments: Sequence[str], tell: Callable[[str], None]) -> Iterator[Server]:
    """Runs `moe-lab` with these arguments until the block is left, which ends it in every case."""
    # It listens on this machine alone, and asks for no key that the client would have to send.
    environment = {name: value for name, value in os.environ.items() if name != "MOE_LAB_API_KEY"}
    with subprocess.Popen(
        [sys.executable, "-m", "moe_lab", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
    ) as process:
        server = Server(process, tell)
        try:
            yield server
        finally:
            server.end()
