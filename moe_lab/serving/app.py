"""The HTTP server: OpenAI's completions and conversations, the model, health, metrics and one page.

A mistake is a status and one sentence: `LabError` and its classes map to statuses (`STATUS`), and nothing a client
sends stops the server. A client that goes away gives its slot back.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from moe_lab.errors import Damaged, LabError, NotFound, Refused, Unavailable
from moe_lab.generation.chat import chat_prompt
from moe_lab.generation.requests import Request, Step
from moe_lab.serving import answers
from moe_lab.serving.bodies import Body, ChatBody, CompletionBody, read_body
from moe_lab.serving.metrics import ServerMetrics
from moe_lab.serving.writer import TooBusyError, Writer

STATUS: tuple[tuple[type[LabError], int], ...] = (
    (TooBusyError, 429),
    (NotFound, 404),
    (Refused, 409),
    (Damaged, 500),
    (Unavailable, 503),
    (LabError, 400),
)
Result = TypeVar("Result")
USUAL_MAX_TOKENS = 16
"""As OpenAI's, where a request says nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may ask of the server."""

    body_bytes: int = 1 << 20
    body_seconds: float = 20.0
    answer_seconds: float = 600.0
    retry_after: int = 2
    """Seconds that a client is told to wait when too many texts wait."""


class TooLargeError(LabError):
    """A body beyond the limit."""


class TooSlowError(LabError):
    """A body or an answer that took longer than the limit."""


def make_app(
    writer: Writer, *, name: str, metrics: ServerMetrics, limits: Limits | None = None, api_key: str | None = None
) -> Starlette:
    """The application.

    Args:
        writer: started.
        name: of the model, as clients see it.
        metrics: what is counted.
        limits: of one request.
        api_key: what clients must send as `Authorization: Bearer KEY`; nothing is asked without.
    """
    server = _Server(writer, name, metrics, limits or Limits(), api_key)
    routes = [
        Route("/", server.page, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/metrics", server.show_metrics, methods=["GET"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/state", server.state, methods=["GET"]),
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        LabError: server.refuse,
        ClientDisconnect: _nobody_there,
        404: _no_such_path,
        405: _no_such_path,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a client wants written, and how answers of its kind are made.

    Attributes:
        prefix: of the answer's id.
        objects: what OpenAI calls a whole answer, and a part of a streamed one.
        choice: a whole text, by its number.
        part: what one step adds to it, and whether that is its first.
    """

    body: Body
    requests: Sequence[Request]
    prefix: str
    objects: tuple[str, str]
    choice: Callable[[int, Sequence[Step]], dict[str, Any]]
    part: Callable[[int, Step, bool], dict[str, Any]]


class _Server:
    def __init__(self, writer: Writer, name: str, metrics: ServerMetrics, limits: Limits, api_key: str | None):
        self.writer, self.name, self.metrics, self.limits = writer, name, metrics, limits
        self.api_key = api_key
        self.started = int(time.time())

    async def page(self, request: HttpRequest) -> Response:
        return HTMLResponse((files("moe_lab.serving") / "page.html").read_text(encoding="utf-8"))

    async def health(self, request: HttpRequest) -> Response:
        broken = self.writer.broken
        if broken is not None:
            return JSONResponse({"status": "broken", "why": str(broken)}, status_code=503)
        return JSONResponse({"status": "ok", "texts": self.writer.texts})

    async def show_metrics(self, request: HttpRequest) -> Response:
        self.metrics.texts.set(self.writer.texts)
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: HttpRequest) -> Response:
        self.require_key(request)
        own = {"id": self.name, "object": "model", "created": self.started, "owned_by": "moe-lab"}
        return JSONResponse({"object": "list", "data": [own]})

    async def state(self, request: HttpRequest) -> Response:
        """What is resident, for the page."""
        self.require_key(request)
        model = self.writer.engine.model
        modules = [
            {"module": module.part.ref, "digest": module.part.digest, "widths": list(module.ladder)}
            for module in model.modules
        ]
        busy = {"texts": self.writer.texts, "slots": self.writer.engine.slots, "room": self.writer.engine.capacity}
        router = {"type": type(model.router).__name__, "price": model.price}
        return JSONResponse(
            {"model": self.name, "trunk": model.trunk.part.ref, "modules": modules, "router": router, "busy": busy}
        )

    async def completions(self, request: HttpRequest) -> Response:
        self.require_key(request)
        body = read_body(await self.read(request), CompletionBody)
        scored = bool(body.echo) and body.logprobs is not None
        requests = [
            one
            for prompt in body.prompts
            for one in body.requests_for(prompt, max_tokens=USUAL_MAX_TOKENS, score_prompt=scored)
        ]
        tokenizer = self.writer.engine.model.trunk.tokenizer

        def choice(index: int, steps: Sequence[Step], first: bool = True) -> dict[str, Any]:
            echo = self.echo(body, requests[index]) if first else None
            return answers.choice(index, steps, tokenizer, body.logprobs, echo)

        return await self.answer(
            request,
            _Asked(
                body=body,
                requests=requests,
                prefix="cmpl",
                objects=("text_completion", "text_completion"),
                choice=choice,
                part=lambda index, step, first: choice(index, [step], first),
            ),
        )

    async def chat(self, request: HttpRequest) -> Response:
        self.require_key(request)
        body = read_body(await self.read(request), ChatBody)
        trunk = self.writer.engine.model.trunk
        prompt = chat_prompt(trunk, [message.message for message in body.messages])
        room = max(1, self.writer.engine.capacity - len(prompt))
        most = body.max_completion_tokens or room
        requests = body.requests_for(prompt, max_tokens=most, document_start=False)

        def part(index: int, step: Step, first: bool) -> dict[str, Any]:
            made = answers.turn(index, [step], trunk.tokenizer, body.alternatives, "delta")
            if first:
                made["delta"]["role"] = "assistant"
            return made

        return await self.answer(
            request,
            _Asked(
                body=body,
                requests=requests,
                prefix="chatcmpl",
                objects=("chat.completion", "chat.completion.chunk"),
                choice=lambda index, steps: answers.turn(index, steps, trunk.tokenizer, body.alternatives),
                part=part,
            ),
        )

    async def answer(self, request: HttpRequest, asked: _Asked) -> Response:
        """Everything at once, or as it is written."""
        if asked.body.model not in (None, self.name):
            raise NotFound(f'there is no model "{asked.body.model}"; this server has {self.name}')
        whole, part = asked.objects
        head = answers.Head(
            id=f"{asked.prefix}-{uuid.uuid4().hex}",
            object=part if asked.body.stream else whole,
            created=int(time.time()),
            model=self.name,
        )
        if asked.body.stream:
            # The first step decides between a status and a stream.
            steps = self.write_all(asked.requests)
            try:
                first = await self.until_gone(request, anext(steps))
            except BaseException:
                await steps.aclose()
                raise
            return StreamingResponse(self.events(head, asked, first, steps), media_type="text/event-stream")
        texts = await self.until_gone(request, self.collect(asked.requests))
        choices = [asked.choice(index, steps) for index, steps in enumerate(texts)]
        return JSONResponse(head.answer(choices, answers.usage(self.prompt_tokens(asked.requests), texts)))

    async def events(
        self, head: answers.Head, asked: _Asked, first: tuple[int, Step], rest: AsyncGenerator[tuple[int, Step]]
    ) -> AsyncIterator[str]:
        texts: list[list[Step]] = [[] for _ in asked.requests]

        async def all_steps() -> AsyncIterator[tuple[int, Step]]:
            yield first
            async for item in rest:
                yield item

        try:
            async for index, step in all_steps():
                texts[index].append(step)
                yield _event(head.answer([asked.part(index, step, len(texts[index]) == 1)]))
            options = asked.body.stream_options
            if options is not None and options.include_usage:
                yield _event(head.answer([], answers.usage(self.prompt_tokens(asked.requests), texts)))
        except LabError as error:
            yield _event(_fault(error))
        finally:
            await rest.aclose()
        yield "data: [DONE]\n\n"

    def echo(self, body: CompletionBody, request: Request) -> str | None:
        """The prompt as text, if it is to stand in front of the answer."""
        if not body.echo:
            return None
        decode = self.writer.engine.model.trunk.tokenizer.decode
        return request.prompt if isinstance(request.prompt, str) else decode(request.prompt)

    def prompt_tokens(self, requests: Sequence[Request]) -> int:
        encode = self.writer.engine.model.trunk.tokenizer.encode
        return sum(len(encode(one.prompt)[0] if isinstance(one.prompt, str) else one.prompt) for one in requests)

    async def collect(self, requests: Sequence[Request]) -> list[list[Step]]:
        texts: list[list[Step]] = [[] for _ in requests]
        steps = self.write_all(requests)
        try:
            async for index, step in steps:
                texts[index].append(step)
        finally:
            await steps.aclose()
        return texts

    async def write_all(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Step]]:
        """The steps of all, mixed. One that fails ends all."""
        box: asyncio.Queue[tuple[int, Step | Exception | None]] = asyncio.Queue()

        async def write(index: int, request: Request) -> None:
            began = before = time.perf_counter()
            steps = self.writer.write(request)
            try:
                async for step in steps:
                    now = time.perf_counter()
                    self.metrics.note_token(now - before, first=before == began)
                    before = now
                    box.put_nowait((index, step))
                box.put_nowait((index, None))
            except Exception as error:  # handed on to whoever listens
                box.put_nowait((index, error))
            finally:
                await steps.aclose()

        tasks = [asyncio.create_task(write(index, request)) for index, request in enumerate(requests)]
        left, deadline = len(tasks), time.monotonic() + self.limits.answer_seconds
        try:
            while left:
                try:
                    index, item = await asyncio.wait_for(box.get(), max(0.0, deadline - time.monotonic()))
                except TimeoutError:
                    raise TooSlowError(f"the answer took more than {self.limits.answer_seconds:g} s") from None
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield index, item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until_gone(self, request: HttpRequest, work: Awaitable[Result]) -> Result:
        """The result, unless the client goes away first: then the work is cancelled."""
        task = asyncio.ensure_future(work)
        gone = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            return task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def read(self, request: HttpRequest) -> bytes:
        """The body, as far as it may be large and slow."""
        most, data = self.limits.body_bytes, bytearray()

        async def collect() -> None:
            async for part in request.stream():
                data.extend(part)
                if len(data) > most:
                    raise TooLargeError(f"the body has more than {most:,} bytes; send less at once")

        try:
            await asyncio.wait_for(collect(), self.limits.body_seconds)
        except TimeoutError:
            raise TooSlowError(f"the body did not come within {self.limits.body_seconds:g} s") from None
        return bytes(data)

    def require_key(self, request: HttpRequest) -> None:
        if self.api_key is None:
            return
        sent = request.headers.get("authorization", "")
        if not hmac.compare_digest(sent.encode(), f"Bearer {self.api_key}".encode()):
            raise WrongKeyError("this server wants an API key: Authorization: Bearer KEY")

    async def refuse(self, request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, LabError)
        status = status_of(error)
        self.metrics.refused.labels(str(status)).inc()
        headers = {"Retry-After": str(self.limits.retry_after)} if status == 429 else None
        return JSONResponse(_fault(error), status_code=status, headers=headers)


class WrongKeyError(LabError):
    """No API key, or another."""


_OWN = {TooLargeError: 413, TooSlowError: 408, WrongKeyError: 401}


def status_of(error: LabError) -> int:
    """The HTTP status of what went wrong."""
    own = _OWN.get(type(error))
    return own or next(status for kind, status in STATUS if isinstance(error, kind))


def _fault(error: LabError) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": type(error).__name__, "code": status_of(error)}}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _gone(request: HttpRequest) -> None:
    """Returns once the client has gone away; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _nobody_there(request: HttpRequest, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx says it; nobody reads it


async def _no_such_path(request: HttpRequest, error: Exception) -> Response:
    known = "POST /v1/completions, /v1/chat/completions, GET /v1/models, /v1/state, /health, /metrics, /"
    message = f"there is no {request.method} {request.url.path}; there are {known}"
    status = getattr(error, "status_code", 404)
    return JSONResponse({"error": {"message": message, "type": "NotFound", "code": status}}, status_code=status)
