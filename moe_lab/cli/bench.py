"""`moe-lab bench`: the routed layer against the machine's own matmul rate and against peers; below it, `serve`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from moe_lab.cli.app import CommandWithOthers
from moe_lab.cli.bench_serve import serve

bench = typer.Typer(cls=CommandWithOthers, invoke_without_command=True, subcommand_metavar="| serve COMPOSITION")
bench.command("serve")(serve)


@bench.callback()
def layer(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE]...", help="Cases by name or a part of it; `all` for all.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="COMPETITOR", help="Measure only these competitors.")
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Torch and Hugging Face too: needs moe-lab[peers].")] = False,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed rounds of every competitor.")] = 10,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where bench.json and the picture go.")] = Path(
        "runs/bench"
    ),
    listing: Annotated[bool, typer.Option("--list", help="Only list cases, competitors and backends.")] = False,
) -> None:
    """Measure the routed layer against the machine's own matmul rate and against other ways to compute it.

    All figures are ratios within one run: cases and competitors take turns, between two calibrations.

    Example:
      moe-lab bench
      moe-lab bench T2048-D512-E8k2 --only worklist --only "padded grouped"
      moe-lab bench all --peers --out docs/performance
    """
    from moe_lab.bench.cases import CASES
    from moe_lab.bench.competitors import COMPETITORS
    from moe_lab.bench.results import HEADER, rows, title
    from moe_lab.bench.run import find_cases, find_competitors, run_bench, save
    from moe_lab.cli.tables import print_table
    from moe_lab.nn.backends import BACKENDS
    from moe_lab.nn.expert_ffn import choose_backend

    if listing:
        from moe_lab.bench.peers import PEERS

        print("cases:", *CASES, sep="\n  ")
        print("competitors:", *COMPETITORS, sep="\n  ")
        print("with --peers:", *PEERS, sep="\n  ")
        described = [(b.name, b.where, b.how, b.drops.value) for b in BACKENDS.values()]
        print_table("backends:", ("name", "where", "how", "drops"), described)
        return

    chosen, competitors = find_cases(cases or []), find_competitors(only or [], peers)
    command = shlex.join(["moe-lab", *sys.argv[1:]])
    for document in run_bench(chosen, competitors, rounds=rounds, command=command, progress=_say):
        saved, picture = save(document, out)
    for result in document.cases:
        print_table(f"\n{title(result)}", HEADER, list(rows(result)), right=HEADER[1:])
        print(f"auto takes {choose_backend(d_model=result.case.d_model, block=result.case.block)}")
    print(f"\nresults: {saved}\npicture: {picture}")


def _say(line: str) -> None:
    """What is being measured: over itself on a terminal; off one only what a log should keep."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif "compiling" in line or "again" in line:
        print(line, file=sys.stderr, flush=True)
