"""A server from start to end: warm, listening, draining."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from moe_lab.compose.lockfile import Lock
from moe_lab.compose.model import ComposedModel
from moe_lab.config import canonical_json
from moe_lab.errors import Unavailable
from moe_lab.files import digest_of
from moe_lab.generation.engine import Engine
from moe_lab.generation.receipts import Receipt
from moe_lab.serving.app import Limits, make_app
from moe_lab.serving.batch_files import BatchFolder
from moe_lab.serving.batches import Batches
from moe_lab.serving.metrics import ServerMetrics
from moe_lab.serving.usage import note_use
from moe_lab.serving.writer import Writer

DRAIN_SECONDS = 30


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    model: ComposedModel,
    lock: Lock,
    ledger: Path,
    batch_folder: Path,
    *,
    host: str,
    port: int,
    slots: int,
    capacity: int,
    most_waiting: int,
    guesses: int,
    keep_bytes: int,
    api_key: str | None,
    limits: Limits,
    tell: Callable[[str], None],
) -> None:
    """Serves until SIGINT or SIGTERM, then finishes what clients wait for; batches go on at the next start.

    Raises:
        Refused: the model cannot write.
        Unavailable: the port is taken.
    """
    with _bind(host, port) as listening:
        engine = Engine(model, slots=slots, capacity=capacity, guesses=guesses, keep_bytes=keep_bytes)
        metrics = ServerMetrics()
        tell("compiling")
        engine.warm()
        composition = digest_of(canonical_json(lock.model_dump(mode="json")).encode())
        ledger.parent.mkdir(parents=True, exist_ok=True)

        def note(written: int, receipt: Receipt, end: str) -> None:
            metrics.note_text(written, receipt, end)
            note_use(ledger, composition, written, receipt, end)

        writer = Writer(engine, note, most_waiting=most_waiting)
        batches = Batches(BatchFolder(batch_folder), composition, at_once=slots)
        writer.start()
        try:
            app = make_app(writer, name=lock.name, metrics=metrics, limits=limits, api_key=api_key, batches=batches)
            asyncio.run(_listen(app, batches, listening, tell))
        finally:
            writer.stop()


def _bind(host: str, port: int) -> socket.socket:
    """First of all, so that a port that is taken is said before anything is compiled."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port") from None


async def _listen(app: Starlette, batches: Batches, listening: socket.socket, tell: Callable[[str], None]) -> None:
    config = uvicorn.Config(
        app,
        log_level="critical",
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        server_header=False,
    )
    server, loop = _Server(config), asyncio.get_running_loop()

    def leave(number: int) -> None:
        batches.pause()
        server.handle_exit(number, None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leave, number)
    host, port = listening.getsockname()[:2]
    tell(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
    await server.serve(sockets=[listening])
    tell("everything that was being written is finished")
    if batches.unfinished:
        tell("batches that are not finished go on at the next start")
