"""`moe-lab speed`: whether a composed model takes less time where its router spends less."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import open_workspace, text_settings

if TYPE_CHECKING:
    from moe_lab.jobs.speed import Speed


def speed(
    ctx: typer.Context,
    composition: Annotated[str, typer.Argument(help="A composition config, or a lockfile.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="DATA", help="Text to route; left out, that of the modules."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed rounds; each visits every price.")] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the figures to this .json file.")
    ] = None,
) -> None:
    """Time the routed layers of a composed model at several prices, on routings of real text.

    Keys: rows (per domain, 8), seq_len (256). The prices are those at which the routing costs all, three quarters,
    half, a quarter and a tenth of what it costs at price 0. All are timed in turns, by one compiled program.

    Example:
      moe-lab speed quickstart/composition
      moe-lab speed quickstart/composition rows=16 --domain python --out speed.json
    """
    path = current_lab(ctx).find_config(composition).absolute()
    from moe_lab.evaluation.spec import MeasuredText
    from moe_lab.jobs.speed import measure_speed

    settings = text_settings(MeasuredText, domain, overrides, "moe-lab speed", rows=8)
    measured = measure_speed(open_workspace(ctx), str(path), path.parent, settings, rounds)
    _print(measured)
    if out is not None:
        _write(measured, out)
        print(f"figures: {out}")


def _print(measured: Speed) -> None:
    from moe_lab.cli.tables import print_table

    dearest = measured.times[0]
    rows = [
        (
            "nothing runs" if time.price is None else f"{time.price:.4g}",
            f"{time.cost:,.0f}",
            f"{time.cost / dearest.cost:.0%}",
            f"{time.milliseconds:.2f}",
            f"{dearest.milliseconds / time.milliseconds:.2f} x",
        )
        for time in measured.times
    ]
    columns = ("price", "multiply-adds per token", "of the dearest", "routed layers, ms", "as fast")
    print_table(f"{measured.tokens:,} tokens through the routed layers, forward", columns, rows, right=columns)
    print(measured.backend)


def _write(measured: Speed, out: Path) -> None:
    import dataclasses

    from moe_lab.files import write_json

    write_json(out, dataclasses.asdict(measured))
