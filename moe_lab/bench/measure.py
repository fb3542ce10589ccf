"""Interleaved timing inside one run, between two calibrations of the machine's own rates.

Every round visits every competitor of every case once, so that a slow minute of a shared machine slows all of them, and
a ratio between two cases is of one time. All cases are measured again if the two calibrations differ by more than a
tenth.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from moe_lab.bench.cases import Case
from moe_lab.bench.competitors import Competitor, draw_blocks, draw_routing, draw_tokens
from moe_lab.config.spec import Spec

MATMUL_SIZE = 2048
COPY_BYTES = 1 << 28
MAX_DRIFT = 0.1
ATTEMPTS = 3
SETTLE_SECONDS = 0.02
"""Lets the worker threads of the previous competitor fall asleep: two libraries share the cores here."""


class Calibration(Spec):
    """What the machine does now: a large float32 matmul, and a large copy into memory that was not in use."""

    gflops: float
    copy_gbytes: float

    def drift(self, other: Calibration) -> float:
        """How far two calibrations of the matmul rate are apart, as a share of the larger."""
        return abs(self.gflops - other.gflops) / max(self.gflops, other.gflops)


class Measurement(Spec):
    """One competitor on one case. Times are the least of all rounds; bytes are None where the library tells none."""

    competitor: str
    forward_ms: float
    forward_median_ms: float
    both_ms: float
    both_median_ms: float
    rounds: int
    compile_seconds: float
    forward_temporary_bytes: int | None
    both_temporary_bytes: int | None


class CaseResult(Spec):
    """All competitors of a case, and the calibrations around the run."""

    case: Case
    useful_forward_gflop: float
    before: Calibration
    after: Calibration
    attempts: int
    measurements: tuple[Measurement, ...]

    @property
    def rate(self) -> float:
        """The calibrated matmul rate in GFLOP/s: the mean of before and after."""
        return (self.before.gflops + self.after.gflops) / 2

    def forward_share(self, measurement: Measurement) -> float:
        """Useful forward work per second, as a share of the calibrated rate."""
        return self.useful_forward_gflop / measurement.forward_ms * 1e3 / self.rate

    def both_share(self, measurement: Measurement) -> float:
        """The same for forward and backward, which count as three forwards; recomputation is not counted as work."""
        return 3 * self.useful_forward_gflop / measurement.both_ms * 1e3 / self.rate


class Runnable(Protocol):
    """A competitor that is ready to run."""

    @property
    def compile_seconds(self) -> float: ...

    @property
    def temporary_bytes(self) -> tuple[int, int] | tuple[None, None]: ...

    @property
    def forward(self) -> Callable[[], object]: ...

    @property
    def both(self) -> Callable[[], object]: ...


Prepare = Callable[[Case], Runnable]


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def calibrate(rounds: int = 12) -> Calibration:
    """Measures the machine now; the best of a few rounds."""
    a = jax.random.normal(jax.random.key(0), (MATMUL_SIZE, MATMUL_SIZE))
    multiply, copy = jax.jit(lambda a: a @ a), jax.jit(lambda v: v + 1)
    v = jnp.zeros(COPY_BYTES // 8, jnp.float32)
    for call in (lambda: multiply(a), lambda: copy(v)):
        jax.block_until_ready(call())
    matmul = min(seconds(lambda: jax.block_until_ready(multiply(a))) for _ in range(rounds))
    moved = min(seconds(lambda: jax.block_until_ready(copy(v))) for _ in range(rounds))
    return Calibration(gflops=2 * MATMUL_SIZE**3 / matmul / 1e9, copy_gbytes=COPY_BYTES / moved / 1e9)


@dataclasses.dataclass
class JaxRunnable:
    """Compiled forward and gradient of one competitor."""

    forward: Callable[[], object]
    both: Callable[[], object]
    compile_seconds: float
    temporary_bytes: tuple[int, int] | tuple[None, None]


def prepare_jax(competitor: Competitor) -> Prepare:
    """Compiles a JAX competitor for a case."""

    def prepare(case: Case) -> JaxRunnable:
        layer, h_TD = competitor(case, draw_blocks(case)), draw_tokens(case)
        dy_TD = jax.random.normal(jax.random.key(case.seed + 2), h_TD.shape)

        def gradient(h, weights, routing, dy):  # type: ignore[no-untyped-def]
            y, pull_back = jax.vjp(
                lambda h, ws, w: layer.run(h, ws, routing._replace(weight=w)), h, weights, routing.weight
            )
            return y, pull_back(dy)

        arguments = (h_TD, layer.weights, draw_routing(case))
        started = time.perf_counter()
        forward = jax.jit(layer.run).lower(*arguments).compile()
        both = jax.jit(gradient).lower(*arguments, dy_TD).compile()
        took = time.perf_counter() - started
        sizes = [_temporary_bytes(compiled) for compiled in (forward, both)]
        return JaxRunnable(
            lambda: jax.block_until_ready(forward(*arguments)),
            lambda: jax.block_until_ready(both(*arguments, dy_TD)),
            took,
            (sizes[0], sizes[1]),
        )

    return prepare


def _temporary_bytes(compiled: jax.stages.Compiled) -> int:
    memory = compiled.memory_analysis()
    assert memory is not None, "this platform does not tell its memory"
    return int(memory.temp_size_in_bytes)


Turn = tuple[str, str]
"""A case and a competitor, by name."""


def measure_cases(
    cases: Sequence[Case],
    competitors: Mapping[str, Prepare],
    *,
    rounds: int = 10,
    patience: float = 20.0,
    progress: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[CaseResult, ...]]:
    """Measures all competitors of all cases side by side, and yields after every round what is known by then.

    Args:
        cases: what to run; they are in memory together.
        competitors: how to make each of them ready.
        rounds: timed rounds; a competitor that has used up `patience` seconds on a case leaves it after its first two.
        patience: seconds that one competitor may take on one case.
        progress: told what is going on, line by line.
    """
    ready: dict[Turn, Runnable] = {}
    for case in cases:
        for name, prepare in competitors.items():
            progress(f"{case.name}: {name}: compiling")
            ready[case.name, name] = prepare(case)
    for attempt in range(1, ATTEMPTS + 1):
        timings: dict[Turn, tuple[list[float], list[float]]] = {turn: ([], []) for turn in ready}
        before = calibrate()
        for number in range(rounds):
            for turn, runnable in ready.items():
                if number < 2 or sum(map(sum, timings[turn])) <= patience:
                    progress(f"{': '.join(turn)}, round {number + 1} of {rounds}")
                    _time(runnable, *timings[turn])
            after = calibrate()
            yield tuple(
                CaseResult(
                    case=case,
                    useful_forward_gflop=case.forward_flops() / 1e9,
                    before=before,
                    after=after,
                    attempts=attempt,
                    measurements=tuple(
                        _measurement(name, ready[case.name, name], *timings[case.name, name]) for name in competitors
                    ),
                )
                for case in cases
            )
        if before.drift(after) <= MAX_DRIFT:
            return
        progress(f"calibrations differ by {before.drift(after):.0%}{', measuring again' * (attempt < ATTEMPTS)}")


def _time(runnable: Runnable, forward: list[float], both: list[float]) -> None:
    """Adds the seconds of a turn."""
    for call, spent in ((runnable.forward, forward), (runnable.both, both)):
        time.sleep(SETTLE_SECONDS)
        if seconds(call) < 1:  # an untimed call warms caches and threads; a slow one needs no warming
            spent.append(seconds(call))
        spent.append(seconds(call))


def _measurement(name: str, runnable: Runnable, forward: list[float], both: list[float]) -> Measurement:
    return Measurement(
        competitor=name,
        forward_ms=1e3 * min(forward),
        forward_median_ms=1e3 * statistics.median(forward),
        both_ms=1e3 * min(both),
        both_median_ms=1e3 * statistics.median(both),
        rounds=len(both),
        compile_seconds=runnable.compile_seconds,
        forward_temporary_bytes=runnable.temporary_bytes[0],
        both_temporary_bytes=runnable.temporary_bytes[1],
    )
