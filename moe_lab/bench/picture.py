"""The roofline: useful work per second against work per byte, under the machine's own two ceilings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moe_lab.bench.measure import CaseResult
from moe_lab.bench.results import Bench

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour and marker of each competitor: blue is ours, and no two share a marker.
_STYLES = {
    "native": ("#0063b0", "o"),
    "worklist": ("#3d8fd6", "h"),
    "capacity": ("#62b2f2", "s"),
    "padded grouped": ("#8a6d00", "v"),
    "capacity einsum": ("#c4560a", "^"),
    "dense masked": ("#8b4a9c", "D"),
    "ragged_dot": ("#59616b", "x"),
    "torch ModuleList": ("#0a8263", "P"),
    "HF OLMoE eager": ("#d4562a", "<"),
    "HF OLMoE grouped_mm": ("#c06fa3", ">"),
    "HF Mixtral eager": ("#a39a1c", "1"),
    "HF Mixtral grouped_mm": ("#7a6fd0", "2"),
}


def flops_per_byte(result: CaseResult) -> float:
    """Useful forward work per byte that has to move at least once: weights in use, tokens in, tokens out."""
    case = result.case
    expert, width, _ = case.route()
    widest_used = {int(e): int(width[expert == e].max()) for e in set(expert.reshape(-1).tolist())}
    weights = 3 * case.d_model * case.block * sum(widest_used.values())
    return case.forward_flops() / (4.0 * (weights + 2 * case.tokens * case.d_model))


def write_roofline(bench: Bench, path: Path) -> Path:
    """Draws forward, and forward with backward, side by side."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 5.2), dpi=130, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _panel(left, bench, "forward")
        _panel(right, bench, "both")
        left.set_ylabel("useful GFLOP/s")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
        figure.savefig(path)
    return path


def _panel(axes: Axes, bench: Bench, stage: str) -> None:
    worked = [result for result in bench.cases if result.useful_forward_gflop > 0]
    rate = sum(result.rate for result in worked) / len(worked) if worked else 1.0
    copy = sum(result.before.copy_gbytes for result in worked) / len(worked) if worked else 1.0
    times = 1 if stage == "forward" else 3
    intensities = [flops_per_byte(result) for result in worked] or [1.0]
    span = (min(intensities) / 10, 3 * max(intensities))
    ridge = rate / copy
    axes.plot([span[0], ridge, span[1]], [span[0] * copy, rate, rate], color="#1a1d21", linewidth=1.2)
    axes.annotate(f"matmul {rate:.0f} GFLOP/s", (span[1], rate), ha="right", va="bottom")
    low = (1.15 * span[0], 0.95 * span[0] * copy)
    axes.annotate(f"copy into new memory, {copy:.0f} GB/s", low, va="top")
    for name in {entry.competitor: None for result in worked for entry in result.measurements}:
        colour, marker = _STYLES.get(name, ("#9aa4b0", "."))
        points = [
            (x, times * result.useful_forward_gflop / getattr(entry, f"{stage}_ms") * 1e3)
            for x, result in zip(intensities, worked, strict=True)
            for entry in result.measurements
            if entry.competitor == name
        ]
        axes.scatter(
            [x for x, _ in points], [y for _, y in points], s=26, color=colour, marker=marker, label=name, zorder=3
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*span)
    axes.set_xlabel("useful FLOP per byte moved at least once")
    axes.set_title("forward" if stage == "forward" else "forward and backward, counted as three forwards", loc="left")
    axes.grid(True, which="major", color="#dfe3e8", linewidth=0.6)
