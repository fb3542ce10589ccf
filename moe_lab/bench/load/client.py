"""One streamed request over a connection of its own, and when each of its tokens came."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from moe_lab.bench.load.figures import Answer, Outcome

Event = dict[str, Any]
Place = tuple[str, int]
"""Host and port."""
PATIENCE = 900.0
"""Seconds after which a request that has no end has failed; servers end theirs sooner."""
REFUSED = 429


class _NotAnsweredError(Exception):
    """A status other than 200, or a mistake in the middle of a stream."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"status {status}: {said}")
        self.status = status


async def ask(place: Place, body: Mapping[str, Any], began: float, arrival: float | None = None) -> Answer:
    """Sends a request now and reads its answer to the end; whatever goes wrong is told by the answer.

    Args:
        place: of the server.
        body: of `/v1/completions`; it says `stream`.
        began: when the load did, in seconds of `time.perf_counter`.
        arrival: when the request was to be sent, in seconds since then; it is not waited for.
    """
    sent = time.perf_counter()
    tokens: list[float] = []
    outcome: Outcome = "finished"
    why = ""

    def take(event: Event) -> None:
        if "error" in event:
            raise _NotAnsweredError(event["error"].get("code", 500), event["error"].get("message", ""))
        if event.get("choices"):
            tokens.append(time.perf_counter() - sent)

    try:
        async with asyncio.timeout(PATIENCE):
            await _converse(place, body, take)
    except _NotAnsweredError as error:
        outcome, why = ("refused", "") if error.status == REFUSED else ("failed", str(error))
    except TimeoutError:
        outcome, why = "failed", f"no end within {PATIENCE:g} s"
    except (OSError, EOFError, ValueError) as error:
        outcome, why = "failed", f"the connection broke: {error}"
    ended, late = time.perf_counter() - sent, 0.0 if arrival is None else sent - began - arrival
    return Answer(sent=sent - began, outcome=outcome, tokens=tuple(tokens), ended=ended, late=late, why=why)


async def _converse(place: Place, body: Mapping[str, Any], take: Callable[[Event], None]) -> None:
    """Sends the body, and hands over each event as it comes, as far as `[DONE]`."""
    reader, writer = await asyncio.open_connection(*place)
    try:
        writer.write(request_bytes(place, body))
        status, chunked = await _read_head(reader)
        if status != 200:
            raise _NotAnsweredError(status, error_message(await reader.read()))
        rest = b""
        while piece := await (_read_chunk(reader) if chunked else reader.read(1 << 16)):
            events, rest = split_events(rest + piece)
            for data in events:
                if data == b"[DONE]":
                    return
                take(json.loads(data))
        raise EOFError("the answer ends in the middle")
    finally:
        writer.close()


def request_bytes(place: Place, body: Mapping[str, Any]) -> bytes:
    """A whole request, after which the connection is not used again."""
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {place[0]}:{place[1]}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether what follows comes in chunks.

    Raises:
        ValueError: it is no answer of HTTP.
    """
    line = await reader.readline()
    if not (found := re.match(rb"HTTP/1\.\d (\d+)", line)):
        raise ValueError("what listens there does not speak HTTP" if line else "it was closed before an answer")
    chunked = False
    while line := (await reader.readline()).strip().lower():
        chunked |= line.startswith(b"transfer-encoding:") and line.endswith(b"chunked")
    return int(found[1]), chunked


async def _read_chunk(reader: asyncio.StreamReader) -> bytes:
    """The next chunk; nothing after the last."""
    if not (line := await reader.readline()):
        raise EOFError("the answer ends in the middle")
    chunk = await reader.readexactly(int(line.partition(b";")[0], 16) + 2)
    return chunk[:-2]


def split_events(text: bytes) -> tuple[list[bytes], bytes]:
    """The data of each whole server-sent event, and the beginning of one that is not there yet."""
    *whole, rest = text.split(b"\n\n")
    return [event.removeprefix(b"data: ") for event in whole if event.startswith(b"data: ")], rest


def error_message(body: bytes) -> str:
    """What the server says is wrong, on one line."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.decode(errors="replace").split())[:200]
