"""The devices of one row of the mesh with who lives there: memory above, load below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_lab.files import open_replacement
from moe_lab.planning.compiled import Compiled
from moe_lab.planning.plan import Plan
from moe_lab.planning.topologies import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZES = ("#bcd8ef", "#62a8dc", "#0063b0", "#0a3d6b", "#b85008", "#8b4a9c")  # narrow to wide
_TRUNK, _WORKING, _LIMIT = "#59616b", "#dfe3e8", "#c0392b"
# Pieces at least this part of the limit tall carry their module's name, where it fits into the bar at a size that is
# read. A letter's width is a share of the font's size.
_LABELLED, _LABEL_POINTS, _LETTER = 0.025, (5.5, 7.0), 0.62


def write_plan_picture(plan: Plan, path: Path) -> Path:
    """Draws one bar for each device of the `expert` axis; every row of the mesh looks the same."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "plan",
            "svg.fonttype": "none",
        }
    ):
        figure = Figure(figsize=(_inches(plan.mesh.expert), 7.2), layout="constrained")
        memory, load = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _memory(memory, plan)
        _load(load, plan)
        title = f"{plan.model.name} on {plan.topology.name}: {plan.verdict}"
        figure.suptitle(title, x=0.01, ha="left")
        with open_replacement(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None, "Title": title})
    return path


def _memory(axes: Axes, plan: Plan) -> None:
    devices, limit = np.arange(plan.mesh.expert), plan.topology.hbm_bytes / GIB
    trunk = (sum(plan.own_bytes.values()) - plan.own_bytes["pools"] - plan.own_bytes.get("adam", 0)) / GIB
    axes.bar(devices, trunk, 0.86, color=_TRUNK, label="trunk")
    bottom_P = _modules(axes, plan, np.full(plan.mesh.expert, trunk), limit)
    result = plan.result
    rest = "gradients, working memory, free slots" if plan.model.settings.train else "working memory, free slots"
    top = (result.peak_bytes if isinstance(result, Compiled) else result.needed_bytes) / GIB
    axes.bar(devices, np.maximum(top - bottom_P, 0), 0.86, bottom_P, color=_WORKING, label=rest)
    axes.axhline(limit, color=_LIMIT, linewidth=1.2)
    axes.annotate(
        f"HBM limit {limit:.2f} GiB",
        (1, limit),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color=_LIMIT,
    )
    axes.set_ylim(0, 1.08 * max(limit, top))
    axes.set_ylabel("GiB on a device")
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def _modules(axes: Axes, plan: Plan, bottom_P: np.ndarray, limit: float) -> np.ndarray:
    """Stacks the modules, the widest first; returns where they end."""
    modules, training = plan.model.modules, plan.model.settings.train
    height_PE = np.zeros((plan.mesh.expert, len(modules)))
    item = plan.model.block_bytes * (0.75 if training else 1)  # gradients are drawn with the rest
    for placement in plan.placements.values():
        for piece in placement.pieces:
            height_PE[piece.device, piece.module] += piece.count * item / GIB
    widths, seen = sorted({module.width for module in modules}), set()
    for e in sorted(range(len(modules)), key=lambda e: -modules[e].width):
        module, label = modules[e], None
        size = widths.index(module.width)
        if size not in seen:
            seen.add(size)
            label = f"width {module.width}" + (" with moments" if training else "")
        style: dict[str, Any] = {"color": _SIZES[min(size, len(_SIZES) - 1)], "edgecolor": "white", "linewidth": 0.4}
        held = np.flatnonzero(height_PE[:, e])  # bars of no height would be most of the file
        axes.bar(held, height_PE[held, e], 0.86, bottom_P[held], label=label, **style)
        for device in np.flatnonzero(height_PE[:, e] > _LABELLED * limit).tolist():
            middle = bottom_P[device] + height_PE[device, e] / 2
            name = module.name.rpartition("/")[2]
            points = _label_points(name, plan.mesh.expert)
            if points is not None:
                at: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": points}
                axes.text(device, middle, name, color="white" if size > 1 else "black", **at)
        bottom_P = bottom_P + height_PE[:, e]
    return bottom_P


def _inches(devices: int) -> float:
    """How wide the figure is: its axis, and a place for each device."""
    return max(7.0, 1.5 + 0.55 * devices)


def _label_points(name: str, devices: int) -> float | None:
    """The size at which a name fits into its bar; None where it would run over the neighbours or not be read."""
    least, most = _LABEL_POINTS
    bar = 72 * (_inches(devices) - 1.5) / devices * 0.86
    fitting = bar / (_LETTER * len(name))
    return min(most, fitting) if fitting >= least else None


def _load(axes: Axes, plan: Plan) -> None:
    layer, placement = next(iter(plan.placements.items()))
    load_P = placement.load_P(plan.model.block_load(layer))
    axes.bar(np.arange(plan.mesh.expert), load_P / load_P.mean(), 0.86, color="#8a6d00")
    axes.axhline(1, color="#1a1d21", linewidth=0.8)
    budget = plan.budget / plan.expected_rows * load_P.max() / load_P.mean()
    axes.axhline(budget, color=_LIMIT, linewidth=0.8, linestyle="--")
    axes.annotate(
        "room in the budget", (1, budget), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=_LIMIT
    )
    axes.set_ylim(0, 1.15 * budget)
    axes.set_ylabel(f"load, mean = 1\n(layer {layer})")
    axes.set_xlabel("device of the expert axis")
    axes.set_xticks(np.arange(plan.mesh.expert))
