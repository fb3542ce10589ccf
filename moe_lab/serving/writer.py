"""The engine in a thread of its own: requests go in from an event loop, steps come back to it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import get_args

from moe_lab.errors import LabError, Unavailable
from moe_lab.generation.engine import Engine
from moe_lab.generation.receipts import Receipt
from moe_lab.generation.requests import Lane, Request, Step

_UNATTENDED = "unattended"


class TooBusyError(Unavailable):
    """As many texts wait as may; later there is room."""


@dataclass(eq=False)
class _Mail:
    """Where the steps of one text go."""

    loop: asyncio.AbstractEventLoop
    box: asyncio.Queue[Step | Exception] = field(default_factory=asyncio.Queue)
    written: int = 0

    def post(self, item: Step | Exception) -> None:
        # The loop may be gone: the server is on its way out, and nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.box.put_nowait, item)


class Writer:
    """Writes texts for many tasks at once.

    Args:
        engine: nobody else may use it from now on.
        note: told of every text that ended: tokens written, receipt, and why it ended, which may be `cancelled`.
        most_waiting: texts of each lane that may wait for a slot; those that nobody waits for are not counted.
    """

    def __init__(self, engine: Engine, note: Callable[[int, Receipt, str], None], *, most_waiting: int = 64):
        self.engine, self.most_waiting = engine, most_waiting
        self._note = note
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._mail: dict[int, _Mail] = {}  # by the engine's numbers; only the thread touches it
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        # Texts that are being written or wait; only the loop touches it.
        self._texts: dict[str, int] = dict.fromkeys((*get_args(Lane), _UNATTENDED), 0)
        self.broken: Exception | None = None

    @property
    def texts(self) -> int:
        """Texts that are being written or wait."""
        return sum(self._texts.values())

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what is being written then is left as it is."""
        self._orders.put(None)
        self._thread.join()

    async def write(self, request: Request, *, unattended: bool = False) -> AsyncGenerator[Step]:
        """The steps of one text. Whoever stops listening cancels it.

        Args:
            request: the text.
            unattended: no client waits for it, so it may wait however many others do, and takes nobody's room.

        Raises:
            TooBusyError: too many of its lane wait.
            LabError: the engine refuses the request.
        """
        if self.broken is not None:
            raise Unavailable(f"the model cannot write any more ({self.broken}); start the server again")
        count = _UNATTENDED if unattended else request.lane
        texts = self._texts[count]
        if not unattended and texts >= self.engine.slots + self.most_waiting:
            raise TooBusyError(f"{texts} texts are being written or wait, which is all there is room for")
        mail = _Mail(asyncio.get_running_loop())
        self._texts[count] += 1
        try:
            self._orders.put(lambda: self._submit(request, mail))
            while True:
                item = await mail.box.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.end is not None:
                    return
        finally:
            self._texts[count] -= 1
            self._orders.put(lambda: self._cancel(mail))

    def _submit(self, request: Request, mail: _Mail) -> None:
        try:
            self._mail[self.engine.submit(request)] = mail
        except LabError as error:
            mail.post(error)

    def _cancel(self, mail: _Mail) -> None:
        """Of a text that has ended there is nothing left to do."""
        for number in [number for number, own in self._mail.items() if own is mail]:
            del self._mail[number]
            receipt = self.engine.cancel(number)
            if receipt is not None:
                self._note(mail.written, receipt, "cancelled")

    def _run(self) -> None:
        try:
            while self._take_orders():
                if self.engine.busy:
                    self._step()
        except Exception as error:  # whatever it is, nobody may wait for ever
            self.broken = error
            for mail in self._mail.values():
                mail.post(Unavailable(f"the model failed while it wrote ({error}); start the server again"))
            raise

    def _take_orders(self) -> bool:
        """All that there are; waits for one if there is nothing to write. False: it is over."""
        wait = not self.engine.busy
        while True:
            try:
                order = self._orders.get(block=wait)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
            wait = False

    def _step(self) -> None:
        for step in self.engine.step():
            mail = self._mail[step.request]
            mail.written += 1
            if step.end is not None:
                del self._mail[step.request]
                assert step.receipt is not None
                self._note(mail.written, step.receipt, step.end)
            mail.post(step)
