"""Batches: files of requests that nobody waits for, worked through line by line and gone on with after a stop.

What is done stands in the files of `batch_files`; what is here can be lost at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from moe_lab.errors import NotFound, Refused
from moe_lab.serving.batch_files import Batch, BatchFolder
from moe_lab.serving.bodies import BatchBody

PAUSE_SECONDS = 10.0
"""After something that may pass, such as a full disk."""

Answer = Callable[[str, dict[str, Any]], Awaitable[tuple[int, dict[str, Any]]]]
"""Path and body of a request -> status and body of its answer. What it raises is no answer: the line is asked again."""


@dataclass(eq=False)
class _Work:
    """A batch that is worked on here.

    Attributes:
        right: to work on it.
        under_way: its lines that are being answered.
        worker: what goes through it; none as long as nobody answers.
        trouble: why it does not go on at the moment.
    """

    batch: Batch
    right: BinaryIO
    completed: int = 0
    failed: int = 0
    under_way: set[asyncio.Task[None]] = field(default_factory=set)
    worker: asyncio.Task[None] | None = None
    trouble: str | None = None


class Batches:
    """The batches of a folder, and the work on those that are this server's.

    A batch is one server's at a time, and is answered by one composition: that of the server that took it on.

    Args:
        folder: where all of it is kept.
        composition: digest of the lockfile that is served here.
        at_once: lines that are under way at a time, of all batches.
    """

    def __init__(self, folder: BatchFolder, composition: str, *, at_once: int) -> None:
        self.folder = folder
        self._composition = composition
        self._room = asyncio.Semaphore(at_once)
        self._works: dict[str, _Work] = {}
        self._answer: Answer | None = None
        self._pausing = asyncio.Event()

    def start(self, answer: Answer) -> None:
        """Goes on with what is unfinished, in the running loop."""
        self._answer = answer
        for batch in reversed(self.folder.batches()):
            own = batch.composition == self._composition or batch.status == "cancelling"
            if own and not batch.ended:
                self._take(batch)

    def pause(self) -> None:
        """Begins no more lines."""
        self._pausing.set()

    async def stop(self) -> None:
        """Gives up the lines that are under way; the next start asks them again."""
        self.pause()
        works = list(self._works.values())
        for line in [line for work in works for line in work.under_way]:
            line.cancel()
        # Workers see for themselves that it is over: what one of them does to a file is done before another may begin.
        await asyncio.gather(*(work.worker for work in works if work.worker is not None))
        for work in self._works.values():
            work.right.close()

    @property
    def unfinished(self) -> int:
        """Batches that are worked on here, or were when it stopped."""
        return len(self._works)

    async def create(self, asked: BatchBody) -> dict[str, Any]:
        """Checks a file and takes its lines on.

        Raises:
            NotFound: there is no such file.
            LabError: a line is not one of a batch; the sentence names it.
        """
        batch = await asyncio.to_thread(self.folder.make, asked, self._composition)
        self._take(batch)
        return self._show(batch)

    def get(self, number: str) -> dict[str, Any]:
        """A batch as clients see it.

        Raises:
            NotFound: there is none of this id.
        """
        return self._show(self._find(number))

    async def newest(self, limit: int, after: str | None) -> dict[str, Any]:
        """Some batches, the newest first.

        Args:
            limit: of how many.
            after: id of the batch behind which they begin; from the first if left out.

        Raises:
            NotFound: there is none of this id.
        """
        batches = await asyncio.to_thread(self.folder.batches)
        if after is not None:
            ids = [batch.id for batch in batches]
            if after not in ids:
                raise NotFound(f'after: there is no batch "{after[:60]}"; take an id of this list')
            batches = batches[ids.index(after) + 1 :]
        shown = [self._show(self._find(batch.id)) for batch in batches[:limit]]
        return {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(batches) > limit,
        }

    def cancel(self, number: str) -> dict[str, Any]:
        """Ends a batch early; what is done of it stays.

        Raises:
            NotFound: there is none of this id.
            Refused: it has ended, or another server works on it.
        """
        batch = self._find(number)
        if batch.ended:
            raise Refused(f"{number} is {batch.status}; only a batch that is in progress can be cancelled")
        work = self._works.get(number) or self._claim(batch)
        if work is None:
            raise Refused(f"another server works on {number}; cancel it there")
        if batch.status == "in_progress":
            work.batch = batch.model_copy(update={"status": "cancelling", "cancelling_at": int(time.time())})
            self.folder.keep(work.batch)
        for line in work.under_way:
            line.cancel()
        self._begin(work)
        return self._show(work.batch)

    def _find(self, number: str) -> Batch:
        work = self._works.get(number)
        return self.folder.batch(number) if work is None else work.batch

    def _show(self, batch: Batch) -> dict[str, Any]:
        work = self._works.get(batch.id)
        if work is not None:
            return batch.as_json(work.completed, work.failed, work.trouble)
        waits = not batch.ended and batch.composition != self._composition
        trouble = "it was made with another composition, and goes on once that is served" if waits else None
        return batch.as_json(*self.folder.counts(batch), trouble)

    def _take(self, batch: Batch) -> None:
        work = self._claim(batch)
        if work is not None:
            self._begin(work)

    def _claim(self, batch: Batch) -> _Work | None:
        """Makes a batch this server's, unless it is another's or was ended by one."""
        right = self.folder.claim(batch)
        if right is None:
            return None
        work = _Work(self.folder.batch(batch.id), right)
        if work.batch.ended:
            self.folder.let_go(batch, right)
            return None
        self._works[batch.id] = work
        return work

    def _begin(self, work: _Work) -> None:
        if self._answer is not None and work.worker is None:
            work.worker = asyncio.create_task(self._work_on(work))

    async def _work_on(self, work: _Work) -> None:
        """Goes on with a batch until it has ended or the server stops."""
        while not self._pausing.is_set():
            try:
                await self._go_through(work)
                return
            except Exception as error:  # a full disk, or a model that broke: clients see why it waits
                first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
                work.trouble = f"it is tried again every {PAUSE_SECONDS:g} s ({first})"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pausing.wait(), PAUSE_SECONDS)

    async def _go_through(self, work: _Work) -> None:
        """Has what is left of a batch answered, and ends it unless the server stops."""
        done = await asyncio.to_thread(self.folder.recover, work.batch)
        work.completed, work.failed = len(done.completed), len(done.failed)
        left = await asyncio.to_thread(self.folder.left, work.batch, done)
        await self._ask_all(work, left)
        if self._pausing.is_set():
            return
        await asyncio.to_thread(self.folder.sync_results, work.batch)
        self._end(work)

    async def _ask_all(self, work: _Work, left: list[int]) -> None:
        """Has the lines answered that begin at these bytes, as many at a time as there is room for."""
        async with asyncio.TaskGroup() as lines:
            for first in left:
                await self._room.acquire()
                if self._pausing.is_set() or work.batch.status == "cancelling":
                    self._room.release()
                    return
                line = lines.create_task(self._ask(work, first))
                work.under_way.add(line)
                line.add_done_callback(functools.partial(self._line_over, work))

    def _line_over(self, work: _Work, line: asyncio.Task[None]) -> None:
        work.under_way.discard(line)
        self._room.release()

    async def _ask(self, work: _Work, first: int) -> None:
        """Has one line answered, and keeps the result."""
        assert self._answer is not None
        line = self.folder.line(work.batch, first)
        status, body = await self._answer(line.url, line.body)
        failed = status != 200
        self.folder.append(work.batch, _result(line.custom_id, status, body), failed=failed)
        work.failed += failed
        work.completed += not failed
        work.trouble = None

    def _end(self, work: _Work) -> None:
        """Without a pause in between, so that nobody cancels what is just completed."""
        batch = work.batch.model_copy(
            update={
                "status": "cancelled" if work.batch.status == "cancelling" else "completed",
                "completed": work.completed,
                "failed": work.failed,
                "ended_at": int(time.time()),
            }
        )
        self.folder.end(batch)
        del self._works[batch.id]
        self.folder.let_go(batch, work.right)


def _result(name: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """A line of an output or error file."""
    response = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": name, "response": response, "error": None}
