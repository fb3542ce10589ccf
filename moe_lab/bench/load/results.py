"""The document that a load writes: what was asked, how each load went, and the rows people read."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from moe_lab.bench.load.figures import Answer, percentile, ratio, tokens_per_second
from moe_lab.bench.machine import cores, processor
from moe_lab.config.spec import Spec

COUNTS = ("load", "sent", "finished", "refused", "failed", "tokens/s", "goodput")
WAITS = ("load", "milliseconds", "p50", "p95", "p99")
LANES = ("requests/s", "TPOT p99, ms", "with batch", "times", "batch tokens/s", "beside", "share")
MOST_MISTAKES = 5


class Plan(Spec):
    """What a load consists of. Times are seconds, rates requests per second.

    Attributes:
        rates: of Poisson arrivals; one load each.
        under_way: how many requests are under way at once; one load each.
        batch_lane: whether the batch lane is measured alone, and beside each rate.
        slots, room, waiting: of the server, as `moe-lab serve` takes them.
        ttft, tpot: the most that a request may wait for its first token, and for each further one on the mean.
    """

    composition: str
    rates: tuple[PositiveFloat, ...]
    under_way: tuple[PositiveInt, ...]
    batch_lane: bool
    seconds: PositiveFloat
    prompt_characters: PositiveInt
    max_tokens: PositiveInt
    slots: PositiveInt
    room: PositiveInt
    waiting: NonNegativeInt
    ttft: PositiveFloat
    tpot: PositiveFloat
    seed: NonNegativeInt


class Machine(Spec):
    """Where both server and client ran: enough to know which documents may be compared."""

    processor: str
    cores: int
    python: str
    jax: str
    load: float
    """Processes that wanted a core when the server had started."""

    @staticmethod
    def here() -> Machine:
        """The machine this runs on."""
        return Machine(
            processor=processor(),
            cores=cores(),
            python=platform.python_version(),
            jax=version("jax"),
            load=os.getloadavg()[0],
        )


class Waits(Spec):
    """Percentiles of seconds."""

    p50: float
    p95: float
    p99: float

    @staticmethod
    def of(values: Sequence[float]) -> Waits | None:
        """None of no values."""
        if not values:
            return None
        return Waits(p50=percentile(values, 50), p95=percentile(values, 95), p99=percentile(values, 99))


class Load(Spec):
    """One load. Percentiles are those of the finished requests; `sent` is finished, refused and failed together.

    Attributes:
        within: requests that met both limits; `goodput` is their share of those sent.
        tokens: of all answers.
        tokens_per_second: those that came in the seconds of the load, without what was finished after it.
        ttft: from sending a request to its first token.
        tpot: the mean time between tokens of a request; `between_tokens` is each time by itself.
        end_to_end: from sending a request to the end of its answer.
        late: the most by which a request was sent after its arrival: how well the client kept up.
        mistakes: why requests failed, each reason once.
    """

    sent: NonNegativeInt
    finished: NonNegativeInt
    refused: NonNegativeInt
    failed: NonNegativeInt
    within: NonNegativeInt
    goodput: Annotated[float, Field(ge=0, le=1)]
    tokens: NonNegativeInt
    tokens_per_second: float
    ttft: Waits | None
    tpot: Waits | None
    between_tokens: Waits | None
    end_to_end: Waits | None
    late: float
    mistakes: tuple[str, ...]


class RateLoad(Load):
    """Poisson arrivals, which never wait for an earlier answer."""

    rate: float


class SteadyLoad(Load):
    """Always so many requests under way: whenever one has ended, the next is sent."""

    under_way: int


class BesideBatch(Spec):
    """One rate while the batch lane is full."""

    interactive: RateLoad
    batch: SteadyLoad
    tpot_ratio: float | None
    """TPOT p99 with the batch lane over that without."""
    batch_ratio: float | None
    """The batch lane's tokens per second beside this rate over those alone."""


class BatchLane(Spec):
    """The batch lane alone, and beside each of the rates."""

    alone: SteadyLoad
    beside: tuple[BesideBatch, ...] = ()


class ServeBench(Spec):
    """One run of `moe-lab bench serve`."""

    format: Literal[1] = 1
    command: str
    machine: Machine
    plan: Plan
    rates: tuple[RateLoad, ...] = ()
    steady: tuple[SteadyLoad, ...] = ()
    batch_lane: BatchLane | None = None


def summary(answers: Sequence[Answer], seconds: float, plan: Plan) -> Load:
    """What a load of so many seconds came to."""
    finished = [answer for answer in answers if answer.outcome == "finished"]
    outcomes = [answer.outcome for answer in answers]
    within = sum(answer.within(plan.ttft, plan.tpot) for answer in answers)
    return Load(
        sent=len(answers),
        finished=len(finished),
        refused=outcomes.count("refused"),
        failed=outcomes.count("failed"),
        within=within,
        goodput=within / len(answers) if answers else 0.0,
        tokens=sum(len(answer.tokens) for answer in answers),
        tokens_per_second=tokens_per_second(answers, seconds),
        ttft=Waits.of([answer.first for answer in finished if answer.first is not None]),
        tpot=Waits.of([answer.per_token for answer in finished if answer.per_token is not None]),
        between_tokens=Waits.of([gap for answer in finished for gap in answer.gaps]),
        end_to_end=Waits.of([answer.ended for answer in finished]),
        late=max((answer.late for answer in answers), default=0.0),
        mistakes=tuple(dict.fromkeys(answer.why for answer in answers if answer.why))[:MOST_MISTAKES],
    )


def beside_batch(alone: RateLoad, batch_alone: SteadyLoad, interactive: RateLoad, batch: SteadyLoad) -> BesideBatch:
    """What each lane costs the other: the same rate alone and beside the batch lane, and that alone and beside it."""
    tpots = [load.tpot.p99 if load.tpot else None for load in (interactive, alone)]
    return BesideBatch(
        interactive=interactive,
        batch=batch,
        tpot_ratio=ratio(*tpots),
        batch_ratio=ratio(batch.tokens_per_second, batch_alone.tokens_per_second),
    )


def named_loads(bench: ServeBench) -> Iterator[tuple[str, Load]]:
    """Every load with the name of its rows."""
    yield from ((f"{load.rate:g} requests/s", load) for load in bench.rates)
    yield from ((f"{load.under_way} under way", load) for load in bench.steady)
    if bench.batch_lane is None:
        return
    yield f"batch, {bench.batch_lane.alone.under_way} under way", bench.batch_lane.alone
    for both in bench.batch_lane.beside:
        rate = f"{both.interactive.rate:g} requests/s"
        yield f"{rate} with batch", both.interactive
        yield f"batch beside {rate}", both.batch


def count_rows(bench: ServeBench) -> Iterator[tuple[str, ...]]:
    """The cells below `COUNTS`."""
    for name, load in named_loads(bench):
        counts = (load.sent, load.finished, load.refused, load.failed)
        yield (name, *map(str, counts), f"{load.tokens_per_second:.1f}", f"{load.goodput:.0%}")


def wait_rows(bench: ServeBench) -> Iterator[tuple[str, ...]]:
    """The cells below `WAITS`, four rows for each load."""
    for name, load in named_loads(bench):
        kinds = ("TTFT", load.ttft), ("TPOT", load.tpot), ("between tokens", load.between_tokens)
        for kind, waits in (*kinds, ("end to end", load.end_to_end)):
            shown = (waits.p50, waits.p95, waits.p99) if waits else (None,) * 3
            yield (name, kind, *map(_milliseconds, shown))


def lane_rows(bench: ServeBench) -> Iterator[tuple[str, ...]]:
    """The cells below `LANES`: what each lane is alone, beside the other, and the ratio of the two."""
    lane = bench.batch_lane
    for alone, both in zip(bench.rates, lane.beside if lane else (), strict=False):  # those that are measured by now
        assert lane is not None
        tpots = (load.tpot.p99 if load.tpot else None for load in (alone, both.interactive))
        batch = (f"{load.tokens_per_second:.1f}" for load in (lane.alone, both.batch))
        times = "" if both.tpot_ratio is None else f"{both.tpot_ratio:.2f}"
        share = "" if both.batch_ratio is None else f"{both.batch_ratio:.0%}"
        yield f"{alone.rate:g}", *map(_milliseconds, tpots), times, *batch, share


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.1f}"
