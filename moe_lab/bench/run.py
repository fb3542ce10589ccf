"""The whole bench: which cases, which competitors, one document and one picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from moe_lab.bench.cases import CASES, QUICK, Case
from moe_lab.bench.competitors import COMPETITORS
from moe_lab.bench.measure import Prepare, measure_cases, prepare_jax
from moe_lab.bench.results import Bench, Machine
from moe_lab.errors import LabError, did_you_mean
from moe_lab.files import write_text
from moe_lab.nn.backends import BACKENDS


def find_cases(names: Sequence[str]) -> list[Case]:
    """Cases by name or by a part of it; the quick ones if none is named, all of them for `all`."""
    cases: dict[str, Case] = {}
    for name in names or QUICK:
        matching = {full: case for full, case in CASES.items() if name == "all" or name in full}
        if not matching:
            raise LabError(f'no case is called "{name}".{did_you_mean(name, list(CASES))}')
        cases |= {name: CASES[name]} if name in CASES else matching
    return list(cases.values())


def find_competitors(names: Sequence[str], peers: bool) -> dict[str, Prepare]:
    """Competitors by name; all JAX ones if none is named, and the torch peers with `peers`."""
    known = {name: prepare_jax(competitor) for name, competitor in COMPETITORS.items()}
    if peers:
        from moe_lab.bench.peers import PEERS, require_torch

        require_torch()
        known |= PEERS
    for name in names:
        if name not in known:
            hint = "" if peers else " (the torch peers need --peers)"
            raise LabError(f'no competitor is called "{name}".{did_you_mean(name, list(known))}{hint}')
    return {name: known[name] for name in names or filter(_can_run, known)}


def _can_run(name: str) -> bool:
    """Whether a competitor is no backend of ours, or one without an obstacle here; `auto` says why it takes another."""
    return name not in BACKENDS or BACKENDS[name].obstacle(None) is None


def run_bench(
    cases: Sequence[Case],
    competitors: dict[str, Prepare],
    *,
    rounds: int,
    command: str,
    progress: Callable[[str], None],
) -> Iterator[Bench]:
    """Measures cases in turns, and yields after each round what is known: a run that is cut short keeps its results."""
    bench = Bench(command=command, machine=Machine.here(), cases=())
    for group in group_cases(cases, len(competitors), _memory_bytes() / 2):
        known = bench.cases
        for results in measure_cases(group, competitors, rounds=rounds, progress=progress):
            bench = bench.model_copy(update={"cases": (*known, *results)})
            yield bench


def group_cases(cases: Sequence[Case], competitors: int, room: float) -> list[list[Case]]:
    """Cuts the cases into runs whose weights, those of every competitor, fill at most `room` bytes together."""
    groups: list[list[Case]] = []
    used = room
    for case in cases:
        own = competitors * case.padded_weight_bytes()
        if not groups or used + own > room:
            groups.append([])
            used = 0
        groups[-1].append(case)
        used += own
    return groups


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def save(bench: Bench, folder: Path) -> tuple[Path, Path]:
    """Writes `bench.json` and `roofline.png`."""
    from moe_lab.bench.picture import write_roofline

    document = folder / "bench.json"
    write_text(document, bench.model_dump_json(indent=1) + "\n")
    return document, write_roofline(bench, folder / "roofline.png")


def load(path: Path) -> Bench:
    """Reads a document that `save` wrote."""
    return Bench.model_validate_json(path.read_text(encoding="utf-8"))
