"""`moe-lab bench serve`: what requests wait for while a server is under load."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_lab.cli.app import current_lab
from moe_lab.errors import LabError, NotFound

if TYPE_CHECKING:
    from moe_lab.bench.load.results import ServeBench
    from moe_lab.lab import Lab


def serve(
    ctx: typer.Context,
    composition: Annotated[str, typer.Argument(help="A composition config, or a lockfile.")],
    rates: Annotated[
        str, typer.Option("--rates", metavar="R,R", help="Requests per second, one load each; empty for none.")
    ] = "0.5,1,2",
    throughput: Annotated[
        str, typer.Option("--throughput", metavar="N,N", help="Also with so many requests under way at once.")
    ] = "",
    batch_lane: Annotated[
        bool, typer.Option("--batch-lane", help="Also with the batch lane full: it alone, and beside each rate.")
    ] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Of each load.")] = 30.0,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="TEXT", help="Prompts are cut from it; left out, from the lab's own READMEs."),
    ] = None,
    prompt_characters: Annotated[
        int, typer.Option("--prompt-characters", min=1, help="Length of a prompt; how many tokens is up to the trunk.")
    ] = 512,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The most that an answer may have.")] = 64,
    ttft: Annotated[float, typer.Option("--ttft", metavar="SECONDS", help="Limit to the first token.")] = 2.0,
    tpot: Annotated[float, typer.Option("--tpot", metavar="SECONDS", help="Limit per further token.")] = 0.2,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Texts that are written side by side.")] = 8,
    room: Annotated[int, typer.Option("--room", min=16, help="Tokens of a text, prompt included.")] = 2048,
    waiting: Annotated[int, typer.Option("--waiting", min=0, help="Texts that may wait for a slot.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of arrivals, prompts and texts.")] = 0,
    out: Annotated[
        Path, typer.Option("--json", metavar="FILE", help="Where the figures go; beside them a picture, in .svg.")
    ] = Path("runs/bench/serve.json"),
) -> None:
    """Measure how long requests wait for their tokens while a composed model is served.

    Starts moe-lab serve in a process of its own and sends it streamed requests at random times, which never wait for an
    earlier answer. Prints percentiles of the waits, tokens per second, and which share of the requests met both limits.

    Example:
      moe-lab bench serve quickstart/composition
      moe-lab bench serve quickstart/composition --rates 1,4,16 --seconds 60 --ttft 1 --tpot 0.05
      moe-lab bench serve quickstart/composition --rates 1 --batch-lane --throughput 1,4,16 --slots 16
    """
    lab = current_lab(ctx)
    settings = {
        "composition": composition,
        "rates": _numbers("--rates", rates, float),
        "under_way": _numbers("--throughput", throughput, int),
        "batch_lane": batch_lane,
        "seconds": seconds,
        "prompt_characters": prompt_characters,
        "max_tokens": max_tokens,
        "slots": slots,
        "room": room,
        "waiting": waiting,
        "ttft": ttft,
        "tpot": tpot,
        "seed": seed,
    }
    text = _own_text(lab) if file is None else _read_text(file)
    _measure(settings, text, ctx.find_root().obj, out)


def _measure(settings: dict[str, Any], text: str, lab: str | None, out: Path) -> None:
    from moe_lab.bench.load.results import Plan
    from moe_lab.bench.load.run import run_load, save
    from moe_lab.config import decode

    plan = decode(Plan, settings, "moe-lab bench serve")
    command, tell = shlex.join(["moe-lab", *sys.argv[1:]]), _Telling()
    try:
        # Closed here: where a document cannot be saved, the server would be left to the garbage collector.
        with contextlib.closing(run_load(plan, text, lab=lab, command=command, tell=tell)) as benches:
            for bench in benches:
                saved, picture = save(bench, out)
    finally:
        tell.end()
    _print(bench)
    print(f"\nresults: {saved}\npicture: {picture}")


def _print(bench: ServeBench) -> None:
    from moe_lab.bench.load.results import COUNTS, LANES, WAITS, count_rows, lane_rows, named_loads, wait_rows
    from moe_lab.cli.tables import print_table

    plan = bench.plan
    title = f"{plan.composition}: {plan.seconds:g} s each, {plan.slots} slots, prompts of {plan.prompt_characters}"
    limits = f"goodput: first token within {plan.ttft:g} s, further ones within {plan.tpot:g} s each"
    print_table(f"{title} characters, {limits}", COUNTS, list(count_rows(bench)), right=COUNTS[1:])
    print_table("\nwhat finished requests waited for", WAITS, list(wait_rows(bench)), right=WAITS[2:])
    if lanes := list(lane_rows(bench)):
        print_table("\nwhat each lane costs the other", LANES, lanes, right=LANES)
    for name, load in named_loads(bench):
        for mistake in load.mistakes:
            print(f"{name}: {load.failed} failed, such as: {mistake}")


class _Telling:
    """What is going on: over itself on a terminal; off one only which load it is."""

    def __init__(self) -> None:
        self._load = ""

    def __call__(self, line: str) -> None:
        load = line.partition(":")[0]
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif load != self._load:
            print(load, file=sys.stderr, flush=True)
        self._load = load

    def end(self) -> None:
        """Clears the line."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _numbers(option: str, text: str, kind: Callable[[str], float]) -> list[float]:
    """The numbers of a list such as 0.5,1,2."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        numbers = [kind(word) for word in words]
    except ValueError:
        numbers = [math.nan]
    if not all(0 < number < math.inf for number in numbers):
        example = "1,4,16" if kind is int else "0.5,1,2"
        raise LabError(f'{option} is "{text}"; it must be numbers above 0 with commas between, such as {example}')
    return numbers


def _own_text(lab: Lab) -> str:
    """The READMEs of the lab that comes with the package."""
    from moe_lab.lab import FOLDERS

    pages = sorted(page for folder in FOLDERS for page in (lab.builtin / folder).rglob("README.md"))
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"--file {file}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise LabError(f"--file {file}: byte {error.start} is not UTF-8 text") from None
