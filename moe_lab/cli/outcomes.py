"""`moe-lab outcomes`: what every candidate of a composition loses on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import (
    CoordinatorOption,
    MeshOption,
    ProcessOption,
    StatesOption,
    open_workspace,
    text_settings,
)

if TYPE_CHECKING:
    from moe_lab.jobs.outcomes import OutcomeFile


def outcomes(
    ctx: typer.Context,
    composition: Annotated[str, typer.Argument(help="A composition config, or a lockfile.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    per: Annotated[
        Literal["token", "sequence"],
        typer.Option("--per", help="One row per token, or one item per document and row, for question routers."),
    ] = "sequence",
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="DATA", help="Text to measure on; left out, that of the modules."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Copy the table to this .parquet file.")
    ] = None,
    mesh: MeshOption = None,
    coordinator: CoordinatorOption = None,
    process: ProcessOption = None,
    keep_states: StatesOption = None,
) -> None:
    """Measure what every module at every width, and the bare trunk, loses on validation text.

    Keys: rows (per domain, 64), seq_len (256), shortest_bytes (16). The same call finds what it measured before.

    Example:
      moe-lab outcomes quickstart/composition --domain python --domain english
      moe-lab outcomes quickstart/composition rows=128 --per token --out tokens.parquet
    """
    path = current_lab(ctx).find_config(composition).absolute()
    from moe_lab.evaluation.spec import OutcomeSettings
    from moe_lab.jobs.outcomes import measure_composition

    settings = text_settings(OutcomeSettings, domain, overrides, "moe-lab outcomes")
    workspace = open_workspace(ctx, mesh=mesh, coordinator=coordinator, process=process, keep_states=keep_states)
    _print(measure_composition(workspace, str(path), path.parent, settings, per, out), per)


def _print(found: OutcomeFile, per: str) -> None:
    from moe_lab.cli.tables import print_table

    rows = [
        (name, f"{cost:,}", *(f"{value:.3f}" for value in bits))
        for name, cost, bits in zip(
            found.space.names, found.space.cost_C.tolist(), found.bits_per_byte_GC.T.tolist(), strict=True
        )
    ]
    columns = ("candidate", "multiply-adds per token", *found.domains)
    print_table("bits per byte on validation text, lower is better", columns, rows, right=columns[1:])
    counted = f"{found.size:,} {'tokens' if per == 'token' else 'items'} of {len(found.space)} candidates"
    print(f"\n{counted}{'' if found.fresh else ', measured before'}: {found.path}")
    if per == "sequence":
        print(f"next: write `table: {found.path}` into a config of kind question_router, and moe-lab train it")
