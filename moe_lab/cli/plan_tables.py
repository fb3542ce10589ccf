"""The tables that `moe-lab plan` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.cli.tables import print_table
from moe_lab.parallel.placement import balance
from moe_lab.planning.compiled import Compiled
from moe_lab.planning.flops import forward_flops, step_flops
from moe_lab.planning.topologies import GIB

if TYPE_CHECKING:
    from moe_lab.planning.plan import Plan


def print_plan(plan: Plan) -> None:
    """Where it runs, who lives where, memory, work, traffic, and what would make it fit."""
    model, topology = plan.model, plan.topology
    step = "training step" if model.settings.train else "forward step"
    per_chip = f", {topology.devices_per_chip} per chip" if topology.devices_per_chip > 1 else ""
    print(
        f"\n{model.name} on {topology.name}: {topology.chips} chips, {topology.num_devices} devices{per_chip}; "
        f"mesh data={plan.mesh.data},expert={plan.mesh.expert}"
    )
    print(
        f"{step}, {plan.rows} rows of {model.settings.seq_len} tokens, top {model.settings.top_k}; "
        f"{plan.expected_rows:,} block rows expected on the fullest device, room for {plan.budget:,}"
    )
    print(plan.backend)
    _placement(plan)
    _memory(plan)
    if isinstance(plan.result, Compiled):
        _work(plan, plan.result)
    if plan.changes:
        print("\nwhat would make it fit (estimates; plan again to know):")
        for change in plan.changes:
            print(f"  {change}")
    elif plan.most_rows is not None:
        print(f"\nlargest batch that should fit: {plan.most_rows} rows (an estimate; plan again to know)")


def _placement(plan: Plan) -> None:
    """One line for each device of the first routed layer; other layers are in plan.json."""
    layer, placement = next(iter(plan.placements.items()))
    load = plan.model.block_load(layer)
    load_P, used_P = placement.load_P(load), placement.used_P()
    names = [module.name for module in plan.model.modules]
    rows = []
    for device in range(placement.devices):
        pieces = [piece for piece in placement.pieces if piece.device == device]
        living = [
            names[piece.module]
            + (f"[{piece.first}:{piece.first + piece.count}]" if piece.count < placement.blocks_E[piece.module] else "")
            + (f" (copy {piece.copy + 1})" if piece.copy else "")
            for piece in sorted(pieces, key=lambda piece: -piece.count)
        ]
        rows.append((device, used_P[device], f"{load_P[device] / load_P.mean():.2f}", ", ".join(living)))
    even = balance(placement, load)
    print()
    print_table(
        f"layer {layer}: fullest over mean device: load {even.load:.3f}, blocks {even.blocks:.3f}",
        ("device", "blocks", "load", "who lives there"),
        rows,
        right=("device", "blocks", "load"),
    )


def _memory(plan: Plan) -> None:
    result, limit = plan.result, plan.topology.hbm_bytes
    rows = [(f"{name}, counted", f"{size / GIB:.3f}") for name, size in plan.own_bytes.items() if size > GIB / 1000]
    rows.append(("all arguments, counted", f"{sum(plan.own_bytes.values()) / GIB:.3f}"))
    if isinstance(result, Compiled):
        rows += [
            ("all arguments, compiler", f"{result.argument_bytes / GIB:.3f}"),
            ("temporaries, compiler", f"{result.temporary_bytes / GIB:.3f}"),
            ("peak, compiler", f"{result.peak_bytes / GIB:.3f}"),
        ]
    else:
        rows.append(("needed, compiler", f"{result.needed_bytes / GIB:.3f}"))
    rows.append(("HBM limit", f"{limit / GIB:.3f}"))
    print()
    print_table("memory of a device", ("what", "GiB"), rows, right=("GiB",))
    if plan.agreement is not None:
        print(f"arguments: the compiler's count is {plan.agreement:.4f} of ours")


def _work(plan: Plan, result: Compiled) -> None:
    print()
    print(f"FLOPs of a step on a device: {step_flops(plan) / 1e12:.2f} T by the compiler, budgets full, loops in full")
    print(f"  a forward pass counted from shapes: {forward_flops(plan) / 1e12:.2f} T")
    if plan.layer is not None:
        print(
            f"  one routed layer alone: forward {plan.layer.forward_flops / 1e12:.3f} T, with gradients "
            f"{plan.layer.gradient_flops / 1e12:.3f} T: {plan.layer.ratio:.3f} of three forwards"
        )
    print()
    rows = [(each.kind, each.count, f"{each.bytes / GIB:.3f}") for each in result.collectives]
    print_table("collectives of a step", ("kind", "count", "GiB"), rows, right=("count", "GiB"))
    print(f"\ncompiled in {result.seconds:.0f} s, planned in {plan.seconds:.0f} s")
