"""The document a bench writes: what ran where, every number, and the lines people read."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import Literal

import jax

from moe_lab.bench.machine import cores, processor
from moe_lab.bench.measure import CaseResult, Measurement
from moe_lab.config.spec import Spec

HEADER = (
    "competitor",
    "forward ms",
    "GFLOP/s",
    "of rate",
    "fwd+bwd ms",
    "of rate",
    "peak temporary MiB",
    "compile s",
)


class Machine(Spec):
    """Enough to know which runs may be compared."""

    platform: str
    processor: str
    cores: int
    python: str
    jax: str
    load: float
    """Processes that wanted a core when the run began."""

    @staticmethod
    def here() -> Machine:
        """The machine this runs on."""
        return Machine(
            platform=jax.default_backend(),
            processor=processor(),
            cores=cores(),
            python=platform.python_version(),
            jax=jax.__version__,
            load=os.getloadavg()[0],
        )


class Bench(Spec):
    """One run of `moe-lab bench`."""

    format: Literal[1] = 1
    command: str
    machine: Machine
    cases: tuple[CaseResult, ...]


def title(result: CaseResult) -> str:
    """What the table of a case is about."""
    case = result.case
    low, high = min(case.counts) * case.block, case.widest * case.block
    widths = f"width {high}" if case.uniform else f"widths {low} to {high}"
    return (
        f"{case.name}: {case.tokens} tokens, D {case.d_model}, {len(case.counts)} modules of {widths}, "
        f"top-{case.top_k}, routing {case.routing}, {result.useful_forward_gflop:.2f} GFLOP forward, "
        f"calibrated {result.rate:.0f} GFLOP/s"
    )


def rows(result: CaseResult) -> Iterator[tuple[str, ...]]:
    """The cells of a case's table, one row for each competitor."""
    for entry in result.measurements:
        yield (
            entry.competitor,
            f"{entry.forward_ms:.1f}",
            f"{result.useful_forward_gflop / entry.forward_ms * 1e3:.0f}",
            f"{result.forward_share(entry):.0%}",
            f"{entry.both_ms:.1f}",
            f"{result.both_share(entry):.0%}",
            temporary(entry),
            f"{entry.compile_seconds:.1f}",
        )


def temporary(entry: Measurement) -> str:
    """Peak temporary memory of forward and of forward with backward."""
    if entry.forward_temporary_bytes is None or entry.both_temporary_bytes is None:
        return "not told"
    return f"{entry.forward_temporary_bytes / 2**20:.0f} / {entry.both_temporary_bytes / 2**20:.0f}"
