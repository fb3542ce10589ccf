"""What a compiler says of a program: memory, FLOPs, collectives, or by how much the program does not fit."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_lab.errors import Unavailable

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%\S+ = (.*?) (?:ragged-)?({'|'.join(COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]")
_LOOP = re.compile(r"layers\d+x(\d+)\)*/while/body")  # `Stack.name`
_NAME = re.compile(r'op_name="((?:[^"\\\\]|\\\\.)*)"')
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?(%[\w.-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_SIZES = (
    re.compile(r"replica_groups=\{\{([\d,]+)\}"),  # groups written out
    re.compile(r"replica_groups=\[\d+,(\d+)\]"),  # number of groups, size of a group
)
_MESH_GROUPS = re.compile(r"replica_groups=\w+\[([^\]]*)\]\s*\{([^}]*)\}")  # mesh['a'=4,'b'=2] {'b'}
_OVERFLOW = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_OLD_OVERFLOW = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one step."""

    kind: str
    count: int
    bytes: int
    """Of the whole arrays that one device gathers, reduces or exchanges, each counted as often as it runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A program that fits, by the compiler. Bytes and FLOPs are those of one device."""

    seconds: float
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temporary_bytes: int
    peak_bytes: int
    flops_loops_once: float
    """As the compiler counts: the body of a loop once, and a grouped matmul as if its budget were full."""
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overflow:
    """A program that the compiler refuses for lack of memory on a device."""

    seconds: float
    needed_bytes: int
    available_bytes: int

    @property
    def short_bytes(self) -> int:
        return self.needed_bytes - self.available_bytes


def compile_program(lowered: Any) -> Compiled | Overflow:
    """Compiles and reads off what there is to know."""
    started = time.perf_counter()
    # The compiler writes its text itself: jax cannot read all programs of a compiler newer than itself.
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed, available = overflow(str(error))
            return Overflow(seconds=time.perf_counter() - started, needed_bytes=needed, available_bytes=available)
        (text,) = Path(folder).glob("*.after_optimizations.txt")
        traffic = collectives(text.read_text(encoding="utf-8"))
    memory = compiled.memory_analysis()
    return Compiled(
        seconds=time.perf_counter() - started,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        flops_loops_once=compiled.cost_analysis()["flops"],
        collectives=traffic,
    )


def overflow(message: str) -> tuple[int, int]:
    """Bytes needed and bytes available, from the compiler's message."""
    match = _OVERFLOW.search(message) or _OLD_OVERFLOW.search(message)
    if match is None:
        raise Unavailable(f"the TPU compiler ran out of memory and gives no figures: {' '.join(message.split())[:300]}")
    needed, needed_unit, available, available_unit = match.groups()
    return int(float(needed) * _UNITS[needed_unit]), int(float(available) * _UNITS[available_unit])


def collectives(text: str) -> tuple[Collective, ...]:
    """Counts the collectives of a compiled program, given as HLO text."""
    total: dict[str, tuple[int, int]] = {}
    for kind, times, size in _each(text):
        count, bytes_ = total.get(kind, (0, 0))
        total[kind] = (count + times, bytes_ + times * size)
    return tuple(Collective(kind, *total[kind]) for kind in COLLECTIVES if kind in total)


def _each(text: str) -> Iterator[tuple[str, int, int]]:
    """Kind, repeats and bytes of each collective.

    One that overlaps with computation appears in each fusion that carries it on, always with the same chain.
    """
    lines = [(name, line) for name, body in _computations(text) for line in body]
    runs = _runs(lines)
    seen = set()
    for computation, line in lines:
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        chain, channel = _CHAIN.search(line), _CHANNEL.search(line)
        if chain is not None:
            key = (chain[1], channel and channel[1])
            if key in seen:
                continue
            seen.add(key)
        result, kind, start = match.groups()
        sizes = [_bytes(element, axes) for element, axes in _ARRAY.findall(result)]
        # An asynchronous start gives back its operand beside its result.
        size = max(sizes, default=0) if start else sum(sizes)
        if kind == "reduce-scatter":
            size *= _group_size(line)
        yield kind, _named_runs(line) or runs.get(computation, 1), size


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """The program's computations by name."""
    for part in re.split(r"\n(?=%|ENTRY )", text):
        head, *body = part.splitlines()
        yield head.removeprefix("ENTRY ").partition(" ")[0], body


def _named_runs(line: str) -> int | None:
    """How often an instruction runs, by the name of where it comes from; None if it has none."""
    name = _NAME.search(line)
    return math.prod(map(int, _LOOP.findall(name[1]))) if name else None


def _runs(lines: list[tuple[str, str]]) -> dict[str, int]:
    """How often each computation runs: as most of its instructions do, else as the one that calls it."""
    votes: dict[str, Counter[int]] = {}
    callers: dict[str, str] = {}
    for computation, line in lines:
        named = _named_runs(line)
        if named is not None:
            votes.setdefault(computation, Counter())[named] += 1
        callers |= dict.fromkeys(_CALLS.findall(line), computation)
    repeats = {name: counts.most_common(1)[0][0] for name, counts in votes.items()}
    for name in callers:
        at = name
        while at not in repeats and at in callers:
            at = callers[at]
        repeats.setdefault(name, repeats.get(at, 1))
    return repeats


def _bytes(element: str, axes: str) -> int:
    bits = 8 if element == "pred" else int(re.sub(r"^[a-z]+(\d+).*", r"\1", element))
    return math.prod(int(axis) for axis in axes.split(",") if axis) * bits // 8


def _group_size(line: str) -> int:
    """Devices that take part in one group of a collective."""
    written, counted = (pattern.search(line) for pattern in _SIZES)
    if written is not None:
        return len(written[1].split(","))
    if counted is not None:
        return int(counted[1])
    mesh = _MESH_GROUPS.search(line)
    if mesh is None:
        return 1
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    return math.prod(
        int(part) if part else sizes.get(name, 1) for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    )
