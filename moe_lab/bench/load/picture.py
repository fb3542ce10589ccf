"""What requests waited for, and how many were served in time, against the rate at which they arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_lab.bench.load.results import Load, RateLoad, ServeBench, Waits
from moe_lab.files import open_replacement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour and marker of each percentile; a dashed line is the same beside the batch lane.
_STYLES = {"p50": ("#62b2f2", "o"), "p95": ("#3d8fd6", "s"), "p99": ("#0063b0", "^")}
_GOODPUT, _TOKENS, _LIMIT = "#0a8263", "#8b4a9c", "#c4560a"
Panel = Callable[["Axes", ServeBench], None]


def write_picture(bench: ServeBench, path: Path) -> Path:
    """Draws what was measured, one panel each: TTFT, TPOT and goodput against the rate, tokens against requests."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels: list[Panel] = [*_RATE_PANELS] if bench.rates else []
    panels += [_steady] if bench.steady else []
    settings: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "moe-lab",
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4 * max(1, len(panels)), 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        for axes, panel in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
            panel(axes, bench)
            axes.set_ylim(bottom=0)
            axes.grid(True, color="#dfe3e8", linewidth=0.6)
        with open_replacement(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
    return path


def _first(axes: Axes, bench: ServeBench) -> None:
    _waits(axes, bench, lambda load: load.ttft, bench.plan.ttft)
    axes.set_title(f"seconds to the first token (TTFT), limit {bench.plan.ttft:g}", loc="left")


def _per_token(axes: Axes, bench: ServeBench) -> None:
    _waits(axes, bench, lambda load: load.tpot, bench.plan.tpot)
    axes.set_title(f"seconds per further token (TPOT), limit {bench.plan.tpot:g}", loc="left")


def _waits(axes: Axes, bench: ServeBench, kind: Callable[[Load], Waits | None], limit: float) -> None:
    """Percentiles against the rate, and the limit where it does not lie far above them."""
    for percent, (colour, marker) in _STYLES.items():
        for loads, dash, suffix in ((bench.rates, "-", ""), (_with_batch(bench), "--", " with batch")):
            known = [(load.rate, getattr(waits, percent)) for load in loads if (waits := kind(load)) is not None]
            if known:
                axes.plot(*zip(*known, strict=True), dash, color=colour, marker=marker, ms=4, label=percent + suffix)
    if limit < 1.5 * axes.get_ylim()[1]:
        axes.axhline(limit, color=_LIMIT, linewidth=1, linestyle=":", label="limit")
    axes.set_xlabel("requests per second")
    axes.legend(frameon=False, fontsize=8)


def _goodput(axes: Axes, bench: ServeBench) -> None:
    for loads, dash, label in ((bench.rates, "-", "alone"), (_with_batch(bench), "--", "with batch")):
        if loads:
            rates, shares = [load.rate for load in loads], [load.goodput for load in loads]
            axes.plot(rates, shares, dash, color=_GOODPUT, marker="o", ms=4, label=label)
    axes.set_ylim(top=1.04)
    axes.set_xlabel("requests per second")
    axes.set_title("share within both limits (goodput)", loc="left")
    axes.legend(frameon=False, fontsize=8)


def _steady(axes: Axes, bench: ServeBench) -> None:
    under_way, tokens = [load.under_way for load in bench.steady], [load.tokens_per_second for load in bench.steady]
    axes.plot(under_way, tokens, color=_TOKENS, marker="o", ms=4)
    axes.set_xlabel("requests under way")
    axes.set_title("tokens per second", loc="left")


_RATE_PANELS: tuple[Panel, ...] = (_first, _per_token, _goodput)


def _with_batch(bench: ServeBench) -> Sequence[RateLoad]:
    return [both.interactive for both in bench.batch_lane.beside] if bench.batch_lane else ()
