"""The HTTP server: OpenAI's completions, conversations and batches, the model, health, metrics and one page.

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

from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from moe_lab.errors import Damaged, LabError, NotFound, Refused, Unavailable, printable
from moe_lab.generation.chat import chat_prompt
from moe_lab.generation.requests import Request, Step
from moe_lab.serving import answers
from moe_lab.serving.batches import Batches
from moe_lab.serving.bodies import BatchBody, Body, ChatBody, CompletionBody, read_body
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
AnyBody = TypeVar("AnyBody", bound=Body)
USUAL_MAX_TOKENS = 16
"""As OpenAI's, where a request says nothing."""
USUAL_BATCHES, MOST_BATCHES = 20, 100
"""Of one list; as OpenAI's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may ask of the server."""

    body_bytes: int = 1 << 20
    body_seconds: float = 20.0
    answer_seconds: float = 600.0
    upload_bytes: int = 100 << 20
    upload_seconds: float = 600.0
    retry_after: int = 2
    """Seconds that a client is told to wait when too many texts wait."""


class TooLargeError(LabError):
    """A body beyond the limit."""


class TooSlowError(LabError):
    """A body or an answer that took longer than the limit."""


def make_app(
    writer: Writer,
    *,
    name: str,
    metrics: ServerMetrics,
    limits: Limits | None = None,
    api_key: str | None = None,
    batches: Batches | None = None,
) -> Starlette:
    """The application.

    Args:
        writer: started.
        name: of the model, as clients see it.
        metrics: what is counted.
        limits: of one request.
        api_key: what clients must send as `Authorization: Bearer KEY`; nothing is asked without.
        batches: worked on from the application's start to its end; there are none without.
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
    if batches is not None:
        routes += _BatchRoutes(server, batches).routes()
    handlers: dict[Any, Any] = {
        LabError: server.refuse,
        ClientDisconnect: _nobody_there,
        404: _no_such_path,
        405: _no_such_path,
    }

    @contextlib.asynccontextmanager
    async def working(_: Starlette) -> AsyncIterator[None]:
        if batches is not None:
            batches.start(server.answer_line)
        yield
        if batches is not None:
            await batches.stop()

    return Starlette(routes=routes, exception_handlers=handlers, lifespan=working)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a client wants written, and how answers of its kind are made.

    Attributes:
        prefix: of the answer's id.
        objects: what OpenAI calls a whole answer, and a part of a streamed one.
        choice: a whole text, by its number.
        part: what one step adds to it, and whether that is its first.
        unattended: no client waits for it: it has no deadline, and takes nobody's room.
    """

    body: Body
    requests: Sequence[Request]
    prefix: str
    objects: tuple[str, str]
    choice: Callable[[int, Sequence[Step]], dict[str, Any]]
    part: Callable[[int, Step, bool], dict[str, Any]]
    unattended: bool = False


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
        return await self.answer(request, self.asked_text(read_body(await self.read(request), CompletionBody)))

    async def chat(self, request: HttpRequest) -> Response:
        self.require_key(request)
        return await self.answer(request, self.asked_turn(read_body(await self.read(request), ChatBody)))

    def asked_text(self, body: CompletionBody) -> _Asked:
        """What a body of `/v1/completions` asks for."""
        self.require_model(body)
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

        return _Asked(
            body=body,
            requests=requests,
            prefix="cmpl",
            objects=("text_completion", "text_completion"),
            choice=choice,
            part=lambda index, step, first: choice(index, [step], first),
        )

    def asked_turn(self, body: ChatBody) -> _Asked:
        """What a body of `/v1/chat/completions` asks for."""
        self.require_model(body)
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

        return _Asked(
            body=body,
            requests=requests,
            prefix="chatcmpl",
            objects=("chat.completion", "chat.completion.chunk"),
            choice=lambda index, steps: answers.turn(index, steps, trunk.tokenizer, body.alternatives),
            part=part,
        )

    def require_model(self, body: Body) -> None:
        if body.model not in (None, self.name):
            raise NotFound(f'there is no model "{body.model}"; this server has {self.name}')

    async def answer(self, request: HttpRequest, asked: _Asked) -> Response:
        """Everything at once, or as it is written."""
        if not asked.body.stream:
            return JSONResponse(await self.until_gone(request, self.whole(asked)))
        head = self.head(asked, asked.objects[1])
        # The first step decides between a status and a stream.
        steps = self.write_all(asked)
        try:
            first = await self.until_gone(request, anext(steps))
        except BaseException:
            await steps.aclose()
            raise
        return StreamingResponse(self.events(head, asked, first, steps), media_type="text/event-stream")

    async def answer_line(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status and the body that a request without a client gets; what HTTP would refuse is refused likewise.

        Raises:
            Unavailable: the model cannot write any more.
        """
        try:
            made = await self.whole(self.asked_line(path, json.dumps(body).encode()))
            json.dumps(made, allow_nan=False)  # what cannot be written as JSON is no answer
        except Unavailable:
            raise
        except LabError as error:
            return status_of(error), _fault(error)
        except Exception as error:  # as over HTTP: a mistake of ours, which ends this request and no other
            message = f"the server failed ({type(error).__name__}: {error})"
            return 500, {"error": {"message": message, "type": type(error).__name__, "code": 500}}
        return 200, made

    def asked_line(self, path: str, data: bytes) -> _Asked:
        """What the body of a line of a batch asks for; it is written when there is time."""
        if path == "/v1/chat/completions":
            asked = self.asked_turn(_in_batch_lane(read_body(data, ChatBody)))
        else:
            asked = self.asked_text(_in_batch_lane(read_body(data, CompletionBody)))
        return dataclasses.replace(asked, unattended=True)

    def head(self, asked: _Asked, kind: str) -> answers.Head:
        return answers.Head(
            id=f"{asked.prefix}-{uuid.uuid4().hex}", object=kind, created=int(time.time()), model=self.name
        )

    async def whole(self, asked: _Asked) -> dict[str, Any]:
        """The answer to what is not streamed."""
        head = self.head(asked, asked.objects[0])
        texts = await self.collect(asked)
        choices = [asked.choice(index, steps) for index, steps in enumerate(texts)]
        return head.answer(choices, answers.usage(self.prompt_tokens(asked.requests), texts))

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

    async def collect(self, asked: _Asked) -> list[list[Step]]:
        texts: list[list[Step]] = [[] for _ in asked.requests]
        steps = self.write_all(asked)
        try:
            async for index, step in steps:
                texts[index].append(step)
        finally:
            await steps.aclose()
        return texts

    async def write_all(self, asked: _Asked) -> AsyncGenerator[tuple[int, Step]]:
        """The steps of all, mixed. One that fails ends all."""
        box: asyncio.Queue[tuple[int, Step | Exception | None]] = asyncio.Queue()

        async def write(index: int, request: Request) -> None:
            began = before = time.perf_counter()
            steps = self.writer.write(request, unattended=asked.unattended)
            try:
                async for step in steps:
                    now = time.perf_counter()
                    if not asked.unattended:
                        self.metrics.note_token(now - before, first=before == began)
                    before = now
                    box.put_nowait((index, step))
                box.put_nowait((index, None))
            except Exception as error:  # handed on to whoever listens
                box.put_nowait((index, error))
            finally:
                await steps.aclose()

        tasks = [asyncio.create_task(write(index, request)) for index, request in enumerate(asked.requests)]
        left = len(tasks)
        deadline = None if asked.unattended else time.monotonic() + self.limits.answer_seconds
        try:
            while left:
                try:
                    within = None if deadline is None else max(0.0, deadline - time.monotonic())
                    index, item = await asyncio.wait_for(box.get(), within)
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
        parts = _parts(request, self.limits.body_bytes)

        async def collect() -> bytes:
            return b"".join([part async for part in parts])

        return await _in_time(collect(), self.limits.body_seconds)

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


class _BatchRoutes:
    """Files and batches over HTTP."""

    def __init__(self, server: _Server, batches: Batches):
        self.server, self.batches = server, batches

    def routes(self) -> list[Route]:
        return [
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files/{id}", self.file, methods=["GET"]),
            Route("/v1/files/{id}/content", self.content, methods=["GET"]),
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", self.newest, methods=["GET"]),
            Route("/v1/batches/{id}", self.batch, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def upload(self, request: HttpRequest) -> Response:
        self.server.require_key(request)
        limits = self.server.limits
        form = await _in_time(_form(request, limits.upload_bytes), limits.upload_seconds)
        try:
            sent = _batch_file(form)
            kept = await asyncio.to_thread(self.batches.folder.keep_upload, sent.file, sent.filename or "")
        finally:
            await form.close()
        return JSONResponse(kept.as_json())

    async def file(self, request: HttpRequest) -> Response:
        self.server.require_key(request)
        return JSONResponse(self.batches.folder.file(request.path_params["id"]).as_json())

    async def content(self, request: HttpRequest) -> Response:
        self.server.require_key(request)
        return FileResponse(self.batches.folder.content(request.path_params["id"]), media_type="application/jsonl")

    async def create(self, request: HttpRequest) -> Response:
        self.server.require_key(request)
        asked = read_body(await self.server.read(request), BatchBody)
        return JSONResponse(await self.batches.create(asked))

    async def newest(self, request: HttpRequest) -> Response:
        self.server.require_key(request)
        limit = request.query_params.get("limit", str(USUAL_BATCHES))
        if not (limit.isdecimal() and len(limit) <= 3 and 1 <= int(limit) <= MOST_BATCHES):
            raise LabError(f"limit is {printable(limit[:20])}; it must be a whole number from 1 to {MOST_BATCHES}")
        return JSONResponse(await self.batches.newest(int(limit), request.query_params.get("after")))

    async def batch(self, request: HttpRequest) -> Response:
        self.server.require_key(request)
        return JSONResponse(self.batches.get(request.path_params["id"]))

    async def cancel(self, request: HttpRequest) -> Response:
        self.server.require_key(request)
        return JSONResponse(self.batches.cancel(request.path_params["id"]))


class WrongKeyError(LabError):
    """No API key, or another."""


_OWN = {TooLargeError: 413, TooSlowError: 408, WrongKeyError: 401}


def status_of(error: LabError) -> int:
    """The HTTP status of what went wrong."""
    own = _OWN.get(type(error))
    return own or next(status for kind, status in STATUS if isinstance(error, kind))


def _in_batch_lane(body: AnyBody) -> AnyBody:
    """The body of a line of a batch, which has no other lane and is never streamed."""
    if body.stream:
        raise LabError("stream: a line of a batch is answered as a whole; leave stream out")
    if body.lane == "interactive" and "lane" in body.model_fields_set:
        raise LabError("lane: a line of a batch has the batch lane; leave lane out")
    return body.model_copy(update={"lane": "batch"})


def _fault(error: LabError) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": type(error).__name__, "code": status_of(error)}}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _parts(request: HttpRequest, most: int) -> AsyncGenerator[bytes]:
    """A body as it comes, up to so many bytes."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLargeError(f"the body has more than {most:,} bytes; send less at once")
        yield part


async def _in_time(reading: Awaitable[Result], seconds: float) -> Result:
    try:
        return await asyncio.wait_for(reading, seconds)
    except TimeoutError:
        raise TooSlowError(f"the body did not come within {seconds:g} s") from None


async def _form(request: HttpRequest, most: int) -> FormData:
    """What a client sends as a form with at most one file, up to so many bytes."""
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise LabError("a file comes as multipart/form-data, as by curl -F purpose=batch -F file=@FILE")
    try:
        parts = _parts(request, most)
        return await MultiPartParser(request.headers, parts, max_files=1, max_fields=8, max_part_size=1024).parse()
    except MultiPartException as error:
        raise LabError(f"the form cannot be read: {error.message}") from None


def _batch_file(form: FormData) -> UploadFile:
    """The file of a form that has what it needs and nothing else."""
    for name in form:
        if name not in ("file", "purpose"):
            raise LabError(f"{printable(name[:60])} is no field of this server; leave it out")
    if form.get("purpose") != "batch":
        raise LabError('purpose must be "batch"; other files are of no use here')
    sent = form.get("file")
    if not isinstance(sent, UploadFile):
        raise LabError("the form has no file; send it in the field file, with its name")
    return sent


async def _gone(request: HttpRequest) -> None:
    """Returns once the client has gone away; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _nobody_there(request: HttpRequest, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx says it; nobody reads it


async def _no_such_path(request: HttpRequest, error: Exception) -> Response:
    known = (
        "POST /v1/completions, /v1/chat/completions, /v1/files, /v1/batches, "
        "GET /v1/models, /v1/batches, /v1/state, /health, /metrics, /"
    )
    message = f"there is no {request.method} {request.url.path}; there are {known}"
    status = getattr(error, "status_code", 404)
    return JSONResponse({"error": {"message": message, "type": "NotFound", "code": status}}, status_code=status)
