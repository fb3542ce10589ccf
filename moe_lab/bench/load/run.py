"""The loads of a plan, one after another: open ones at a rate, steady ones, and both at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from moe_lab.bench.load.client import Place, ask
from moe_lab.bench.load.figures import Answer, draw_arrivals, draw_prompts
from moe_lab.bench.load.results import (
    BatchLane,
    BesideBatch,
    Machine,
    Plan,
    RateLoad,
    ServeBench,
    SteadyLoad,
    beside_batch,
    summary,
)
from moe_lab.bench.load.server import Server, serving
from moe_lab.errors import LabError
from moe_lab.files import write_text

Body = dict[str, Any]
Lane = Literal["interactive", "batch"]
Ask = Callable[[Body, float, float | None], Coroutine[Any, Any, Answer]]
"""Sends a body; also given when the load began, and when the request was to be sent, if that was laid down."""
Result = TypeVar("Result")
LANES: tuple[Lane, ...] = ("interactive", "batch")
GLANCE = 0.5
"""Seconds from one look at the server to the next."""
PAUSE = 0.5
"""Seconds before a steady load asks again after it was refused, or after a failure."""


def run_load(
    plan: Plan, text: str, *, lab: str | None, command: str, tell: Callable[[str], None]
) -> Generator[ServeBench]:
    """Starts the server, measures, and yields after each load what is known: a run that is cut short keeps its results.

    Args:
        plan: what to measure.
        text: prompts are cut from it.
        lab: to work in, as `moe-lab --lab` takes it.
        command: that asked for it.
        tell: told what is going on, as `load: how far`.

    Raises:
        LabError: the plan has nothing in it, an arrival or a prompt cannot be drawn, or the server refuses the request.
        Unavailable: the server does not start, or ends.
    """
    if not (plan.rates or plan.under_way or plan.batch_lane):
        raise LabError("there is nothing to measure; give --rates, --throughput or --batch-lane")
    arrivals = [draw_arrivals(rate, plan.seconds, plan.seed) for rate in plan.rates]
    draw_prompts(text, plan.prompt_characters, (plan.seed,))
    with serving(server_arguments(plan, lab), lambda line: tell(f"starting the server: {line}")) as server:
        loads = _Loads(plan, text, server, server.place(), tell)
        loads.require_answer()
        yield from _measure(loads, arrivals, ServeBench(command=command, machine=Machine.here(), plan=plan))


def server_arguments(plan: Plan, lab: str | None) -> list[str]:
    """What `moe-lab` is called with."""
    sizes = {"--slots": plan.slots, "--room": plan.room, "--waiting": plan.waiting, "--port": 0}
    options = [word for name, value in sizes.items() for word in (name, str(value))]
    return [*(["--lab", lab] if lab else []), "serve", plan.composition, *options]


def _measure(loads: _Loads, arrivals: Sequence[list[float]], bench: ServeBench) -> Iterator[ServeBench]:
    plan = loads.plan
    for rate, times in zip(plan.rates, arrivals, strict=True):
        bench = bench.model_copy(update={"rates": (*bench.rates, loads.at_rate(rate, times))})
        yield bench
    for under_way in plan.under_way:
        bench = bench.model_copy(update={"steady": (*bench.steady, loads.steady(under_way, "interactive"))})
        yield bench
    if not plan.batch_lane:
        return
    lane = BatchLane(alone=loads.steady(plan.slots, "batch"))
    yield bench.model_copy(update={"batch_lane": lane})
    for alone, times in zip(bench.rates, arrivals, strict=True):
        lane = lane.model_copy(update={"beside": (*lane.beside, loads.both(alone, lane.alone, times))})
        yield bench.model_copy(update={"batch_lane": lane})


class _Loads:
    """The loads that one server gets."""

    def __init__(self, plan: Plan, text: str, server: Server, place: Place, tell: Callable[[str], None]) -> None:
        self.plan, self._text, self._server, self._place, self._tell = plan, text, server, place, tell
        self._under_way = self._drawn = 0

    def require_answer(self) -> None:
        """Sends one request that counts nowhere: the first text of a process is slower than all others.

        Raises:
            LabError: it is not answered; the message is the server's.
        """
        answer = asyncio.run(self._watched("first text", self._ask(next(self._bodies("interactive")), 0.0, None)))
        if answer.outcome != "finished":
            why = answer.why or "too many requests"
            raise LabError(f"the server does not answer a first request ({why}); change the options that this names")

    def at_rate(self, rate: float, arrivals: Sequence[float]) -> RateLoad:
        """Arrivals at a rate, to the end of the last answer."""
        load = open_load(self._ask, arrivals, self._bodies("interactive"))
        return self._rate_load(rate, asyncio.run(self._watched(f"{rate:g} requests/s", load)))

    def steady(self, under_way: int, lane: Lane) -> SteadyLoad:
        """So many requests under way for the seconds of the plan, then to the end of the last answer."""
        name = f"{under_way} under way" if lane == "interactive" else "batch lane alone"
        load = steady_load(self._ask, self._bodies(lane), under_way, lambda seconds: seconds >= self.plan.seconds)
        return self._steady_load(under_way, asyncio.run(self._watched(name, load)))

    def both(self, alone: RateLoad, batch_alone: SteadyLoad, arrivals: Sequence[float]) -> BesideBatch:
        """Arrivals that were measured alone, with the batch lane full until the last of them is answered."""
        bodies = {lane: self._bodies(lane) for lane in LANES}
        load = both_loads(self._ask, arrivals, bodies, batch_alone.under_way, self.plan.seconds)
        interactive, batch = asyncio.run(self._watched(f"{alone.rate:g} requests/s with batch", load))
        return beside_batch(
            alone,
            batch_alone,
            self._rate_load(alone.rate, interactive),
            self._steady_load(batch_alone.under_way, batch),
        )

    def _rate_load(self, rate: float, answers: Sequence[Answer]) -> RateLoad:
        return RateLoad(rate=rate, **dict(summary(answers, self.plan.seconds, self.plan)))

    def _steady_load(self, under_way: int, answers: Sequence[Answer]) -> SteadyLoad:
        return SteadyLoad(under_way=under_way, **dict(summary(answers, self.plan.seconds, self.plan)))

    def _bodies(self, lane: Lane) -> Iterator[Body]:
        self._drawn += 1
        return draw_bodies(self.plan, self._text, lane, self._drawn)

    async def _ask(self, body: Body, began: float, arrival: float | None) -> Answer:
        self._under_way += 1
        try:
            return await ask(self._place, body, began, arrival)
        finally:
            self._under_way -= 1

    async def _watched(self, name: str, load: Coroutine[Any, Any, Result]) -> Result:
        """The result of a load, as long as the server lives; tells how far it is."""
        task, began = asyncio.create_task(load), time.perf_counter()
        try:
            while not task.done():
                self._tell(f"{name}: {time.perf_counter() - began:.0f} s, {self._under_way} under way")
                await asyncio.wait([task], timeout=GLANCE)
                self._server.require_alive()
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])


def draw_bodies(plan: Plan, text: str, lane: Lane, load: int) -> Iterator[Body]:
    """The requests of one load, without end.

    Each load has prompts of its own: what a server has read once it need not read again.
    """
    prompts = draw_prompts(text, plan.prompt_characters, (plan.seed, load))
    for number, prompt in enumerate(prompts):
        yield {
            "prompt": prompt,
            "max_tokens": plan.max_tokens,
            "seed": plan.seed + number,
            "stream": True,
            "lane": lane,
        }


async def open_load(ask: Ask, arrivals: Sequence[float], bodies: Iterator[Body]) -> list[Answer]:
    """Sends a request at each arrival, in seconds from now, whatever became of the earlier ones; waits for all."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, began + arrival - time.perf_counter()))
            tasks.append(group.create_task(ask(next(bodies), began, arrival)))
    return [task.result() for task in tasks]


async def steady_load(ask: Ask, bodies: Iterator[Body], under_way: int, over: Callable[[float], bool]) -> list[Answer]:
    """Keeps so many requests under way until it is `over`, told the seconds since it began; waits for the last."""
    began, answers = time.perf_counter(), list[Answer]()

    async def keep_asking() -> None:
        while not over(time.perf_counter() - began):
            answers.append(await ask(next(bodies), began, None))
            if answers[-1].outcome != "finished":
                await asyncio.sleep(PAUSE)

    async with asyncio.TaskGroup() as group:
        for _ in range(under_way):
            group.create_task(keep_asking())
    return answers


async def both_loads(
    ask: Ask, arrivals: Sequence[float], bodies: Mapping[Lane, Iterator[Body]], under_way: int, seconds: float
) -> tuple[list[Answer], list[Answer]]:
    """An open load, and beside it a steady one of the batch lane: so long, and to the other's last answer."""
    async with asyncio.TaskGroup() as group:
        interactive = group.create_task(open_load(ask, arrivals, bodies["interactive"]))

        def over(passed: float) -> bool:
            return passed >= seconds and interactive.done()

        batch = group.create_task(steady_load(ask, bodies["batch"], under_way, over))
    return interactive.result(), batch.result()


def save(bench: ServeBench, path: Path) -> tuple[Path, Path]:
    """Writes the document, and beside it a picture with its name in `.svg`."""
    from moe_lab.bench.load.picture import write_picture

    write_text(path, bench.model_dump_json(indent=1) + "\n")
    return path, write_picture(bench, path.with_suffix(".svg"))


def load(path: Path) -> ServeBench:
    """Reads a document that `save` wrote."""
    return ServeBench.model_validate_json(path.read_text(encoding="utf-8"))
