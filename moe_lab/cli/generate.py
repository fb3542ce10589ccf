"""`moe-lab generate`: a composed model writes."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import open_workspace
from moe_lab.errors import LabError, NotFound

if TYPE_CHECKING:
    from moe_lab.compose.model import ComposedModel
    from moe_lab.generation.requests import Request, Step

_SHADES = (250, 117, 80, 221, 209, 197)
"""Colours of a terminal, from the bare trunk to the widest rung."""


def generate(
    ctx: typer.Context,
    composition: Annotated[str, typer.Argument(help="A composition config, or a lockfile.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A text to write on; may be given again.")
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="FILE", help="The same from a file, or with - from standard input."),
    ] = None,
    jsonl: Annotated[
        str | None,
        typer.Option(
            "--jsonl", metavar="FILE", help="By line: {prompt or messages: ..., and keys, price, without, domain}."
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Prompts are what a person says; the model answers as its template says.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="With --chat, what stands in front of it all.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="Nats per token that the dearest candidate must save.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="NAME", help="Opt out a module, owner/name.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option("--domain", metavar="DATA", help="Tell the router whose text it is.")
    ] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Texts that are written side by side.")] = 4,
    guesses: Annotated[
        int, typer.Option("--guesses", min=0, max=16, help="Tokens to guess from the text and check at once; 0: none.")
    ] = 0,
    stream: Annotated[bool, typer.Option("--stream", help="Print as it is written; for one prompt.")] = False,
    color: Annotated[
        bool, typer.Option("--color", help="Colour the text by width: grey is the bare trunk, red the widest.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw prompt and answer as an SVG; for one prompt.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each text: tokens, routing, cost, receipt.")
    ] = False,
) -> None:
    """Write on from one or more prompts.

    Keys: max_tokens (128), temperature (0: the likeliest token), top_k, top_p, min_p, seed, stop, stop_ids,
    ignore_end. Several prompts share one model and do not change one another's draws.

    Example:
      moe-lab generate quickstart/composition --prompt "def first(" max_tokens=60
      moe-lab generate quickstart/composition --file question.txt --price 0.1 temperature=0.8 seed=7 --stream
      moe-lab generate quickstart/composition --jsonl prompts.jsonl --json
      moe-lab generate smollm2/composition --chat --prompt "What is a mixture of experts?"
    """
    current_lab(ctx)
    if not (prompt or file or jsonl):
        raise LabError("there is nothing to write on; give --prompt TEXT, --file FILE or --jsonl FILE")
    if jsonl == "-" and "-" in (file or ()):
        raise LabError("standard input can be read once; give it to --file or to --jsonl")
    shared = {"price": price, "without": tuple(without or ()), "domain": domain}
    keys = _keys(overrides or [])
    given = [{"prompt": text} for text in [*(prompt or ()), *(_read_text(name) for name in file or ())]]
    lines = [] if jsonl is None else _read_lines(jsonl)
    if system is not None and not chat:
        raise LabError("--system belongs to a conversation; add --chat")
    labelled = [*(("--prompt", one) for one in given), *lines]
    if chat:
        labelled = [(label, _as_conversation(line, system)) for label, line in labelled]
    asked = [_request(line, label, shared, keys) for label, line in labelled]
    if stream and len(asked) > 1:
        raise LabError(f"--stream prints one text as it is written, and there are {len(asked)}; leave it out")
    if picture is not None and len(asked) > 1:
        raise LabError(f"--picture draws one text, and there are {len(asked)}; leave it out")
    from moe_lab.generation.engine import generate as write

    workspace = open_workspace(ctx)
    model = workspace.load_model(workspace.find_lock(composition, Path.cwd()))
    requests = [
        dataclasses.replace(request, prompt=_conversation(model, messages), document_start=False)
        if messages
        else request
        for request, messages in asked
    ]
    written = _print(model, requests, write(model, requests, slots=slots, guesses=guesses), stream, color, as_json)
    if picture is not None:
        from moe_lab.reports.answer_picture import WrittenToken, write_answer_picture

        said = asked[0][1][-1]["content"] if asked[0][1] else str(requests[0].prompt)
        write_answer_picture(said, [WrittenToken(step.text, step.modules) for step in written[0]], picture)
        print(f"drawn: {picture}", file=sys.stderr)


def _print(
    model: ComposedModel, requests: list[Request], steps: Iterator[Step], stream: bool, color: bool, as_json: bool
) -> dict[int, list[Step]]:
    """Prints texts in the order of their requests, and returns their steps."""
    widest = max(max(module.ladder) for module in model.modules)
    written: dict[int, list[Step]] = {number: [] for number in range(len(requests))}
    started, told = time.perf_counter(), 0
    for step in steps:
        written[step.request].append(step)
        if stream and not as_json:
            print(_shown(step, widest, color), end="", flush=True)
        # In the order of the prompts, whichever ends first.
        while told in written and written[told] and written[told][-1].end:
            if as_json:
                print(json.dumps(_as_json(told, requests[told], written[told]), ensure_ascii=False), flush=True)
            elif stream:
                print()
            else:
                if len(requests) > 1:
                    print(f"--- {told + 1}")
                print("".join(_shown(one, widest, color) for one in written[told]), flush=True)
            told += 1
    took = time.perf_counter() - started
    if not as_json:
        print(_summary(list(written.values()), took), file=sys.stderr)
    return written


def _shown(step: Step, widest: int, color: bool) -> str:
    if not color or not step.text:
        return step.text
    width = sum(width for _, width in step.modules)
    shade = 0 if not width else min(len(_SHADES) - 1, 1 + (len(_SHADES) - 2) * width // max(1, widest))
    return f"\x1b[38;5;{_SHADES[shade]}m{step.text}\x1b[0m"


def _as_json(number: int, request: Request, steps: list[Step]) -> dict[str, Any]:
    receipt = steps[-1].receipt
    assert receipt is not None
    tokens = [
        {
            "id": step.token,
            "text": step.text,
            "logprob": step.said.logprob,
            "likeliest": [list(pair) for pair in step.said.likeliest],
            "modules": [list(pair) for pair in step.modules],
            "multiply_adds": step.multiply_adds,
        }
        for step in steps
    ]
    text = "".join(step.text for step in steps)
    return {
        "request": number,
        "prompt": request.prompt,
        "text": text,
        "end": steps[-1].end,
        "tokens": tokens,
        "receipt": receipt.as_json(),
    }


def _summary(texts: list[list[Step]], took: float) -> str:
    """What was written, how fast, and whose modules worked."""
    receipts = [steps[-1].receipt for steps in texts]
    tokens = sum(map(len, texts))
    per_token = sum(receipt.multiply_adds for receipt in receipts if receipt) / max(
        1, sum(receipt.tokens_read for receipt in receipts if receipt)
    )
    used: dict[str, int] = {}
    for receipt in receipts:
        for use in receipt.modules if receipt else ():
            used[use.module] = used.get(use.module, 0) + use.multiply_adds
    total = sum(used.values()) or 1
    shares = ", ".join(f"{name} {count / total:.0%}" for name, count in sorted(used.items(), key=lambda kv: -kv[1]))
    return (
        f"{tokens} tokens in {took:.1f} s with loading and compiling; {per_token:,.0f} multiply-adds a token in the "
        f"routed layers: {shares or 'the bare trunk alone'}"
    )


def _keys(overrides: list[str]) -> dict[str, Any]:
    from moe_lab.config import apply_overrides

    keys: dict[str, Any] = apply_overrides({}, overrides)
    return keys


def _as_conversation(line: dict[str, Any], system: str | None) -> dict[str, Any]:
    """A line whose prompt is what a person says, in front of it what is said to all."""
    said = line.pop("messages", None) or [{"role": "user", "content": line.pop("prompt", None)}]
    front = [] if system is None else [{"role": "system", "content": system}]
    return {**line, "messages": [*front, *said]}


def _conversation(model: ComposedModel, messages: list[dict[str, str]]) -> tuple[int, ...]:
    from moe_lab.generation.chat import Message, chat_prompt

    return chat_prompt(model.trunk, [Message(**message) for message in messages])


def _messages(given: Any, label: str) -> list[dict[str, str]]:
    """The turns of a line, each with a role and a content that are texts."""
    if given is None:
        return []
    good = isinstance(given, list) and all(
        isinstance(turn, dict) and turn.keys() == {"role", "content"} and all(isinstance(v, str) for v in turn.values())
        for turn in given
    )
    if not given or not good:
        raise LabError(f'{label}: messages must be a list of {{"role": ..., "content": ...}}, both texts')
    return list(given)


def _request(
    line: dict[str, Any], label: str, shared: dict[str, Any], keys: dict[str, Any]
) -> tuple[Request, list[dict[str, str]]]:
    """What a line asks for, and the conversation that takes its prompt's place, if it is one."""
    from moe_lab.config import decode
    from moe_lab.generation.requests import Request
    from moe_lab.generation.sampling import Sampling

    own = {**{name: value for name, value in shared.items() if value}, **line}
    terms = {name: own.pop(name) for name in ("prompt", "price", "without", "domain") if name in own}
    messages = _messages(own.pop("messages", None), label)
    if messages and "prompt" in terms:
        raise LabError(f"{label}: has a prompt and messages; one of them is what the model is to read")
    if messages:
        terms["prompt"] = ""
    if not isinstance(terms.get("prompt"), str):
        raise LabError(f"{label}: prompt is {json.dumps(terms.get('prompt'))}; it must be a text")
    if not isinstance(terms.get("price", 0.0), (int, float)) or isinstance(terms.get("price"), bool):
        raise LabError(f"{label}: price is {json.dumps(terms['price'])}; it must be a number")
    names = terms.get("without", ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise LabError(f"{label}: without is {json.dumps(names)}; it must be a list of owner/name")
    terms["without"] = tuple(names)
    return Request(**terms, sampling=decode(Sampling, {**keys, **own}, label)), messages


def _read_text(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode()
    except FileNotFoundError:
        raise NotFound(f"--file {name}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise LabError(f"--file {name}: byte {error.start} is not UTF-8 text") from None


def _read_lines(name: str) -> list[tuple[str, dict[str, Any]]]:
    lines = []
    for number, text in enumerate(_read_text(name).splitlines(), start=1):
        if not text.strip():
            continue
        label = f"--jsonl {name}, line {number}"
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise LabError(f"{label}: not JSON ({error.msg} at character {error.pos + 1})") from None
        if not isinstance(line, dict):
            raise LabError(f'{label}: is {type(line).__name__}, must be an object such as {{"prompt": "..."}}')
        lines.append((label, line))
    if not lines:
        raise LabError(f"--jsonl {name}: there is no line in it")
    return lines
