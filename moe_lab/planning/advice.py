"""What would make a plan fit: each change alone, by arithmetic on the figures of the one that does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from moe_lab.parallel.pool import room_for
from moe_lab.parallel.spec import MeshSpec
from moe_lab.planning.compiled import Overflow
from moe_lab.planning.model import PlannedModel
from moe_lab.planning.topologies import GENERATIONS, GIB, Topology, parse_topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One change and what it saves. An estimate: only another `plan` knows."""

    change: str
    saved_bytes: int
    enough: bool

    def __str__(self) -> str:
        return f"{self.change}: about {self.saved_bytes / GIB:.2f} GiB less" + (
            "" if self.enough else ", not enough alone"
        )


def changes(
    model: PlannedModel,
    topology: Topology,
    mesh: MeshSpec,
    rows: int,
    own_bytes: Mapping[str, int],
    result: Overflow,
) -> tuple[Change, ...]:
    """The changes that save anything, those that are enough first."""
    helpful = [
        Change(change=text, saved_bytes=int(saved), enough=saved >= result.short_bytes)
        for text, saved in _savings(model, topology, mesh, rows, own_bytes, result)
        if saved > GIB / 100
    ]
    return tuple(sorted(helpful, key=lambda change: not change.enough))


def _savings(
    model: PlannedModel, topology: Topology, mesh: MeshSpec, rows: int, own_bytes: Mapping[str, int], result: Overflow
) -> Iterator[tuple[str, float]]:
    devices, settings = topology.num_devices, model.settings
    pools = own_bytes["pools"] + own_bytes.get("adam", 0)
    # Gradients are no argument, but as large as the masters.
    pools += own_bytes["pools"] if settings.train else 0
    working = max(result.needed_bytes - sum(own_bytes.values()) - (own_bytes["pools"] if settings.train else 0), 0)

    def with_slots(replicate: float, devices: int) -> float:
        """What the pools would take, from a placement made for it."""
        placements = model.place(devices, replicate)
        return sum(room_for(placement).slots for placement in placements.values()) * model.block_bytes

    if rows > devices:
        fewer = max(devices, int(rows * (1 - result.short_bytes / max(working, 1))) // devices * devices)
        yield f"rows={fewer} instead of {rows}", working * (1 - fewer / rows)
    elif settings.seq_len > 256:
        yield f"seq_len={settings.seq_len // 2} instead of {settings.seq_len}", working / 2
    if settings.trunk_sharding == "replicated" and devices > 1:
        yield "trunk_sharding=sharded", own_bytes["trunk"] * (1 - 1 / devices)
    if settings.replicate:
        yield "replicate=0, each module stored once", pools - with_slots(0.0, mesh.expert)
    if mesh.data > 1:
        yield (
            f"--mesh data={mesh.data // 2},expert={mesh.expert * 2}",
            pools - with_slots(settings.replicate, 2 * mesh.expert),
        )
    yield from _narrower(model, pools)
    yield from _larger(topology, mesh, pools, result.short_bytes)


def _larger(topology: Topology, mesh: MeshSpec, pools: float, short: int) -> Iterator[tuple[str, float]]:
    """The smallest of the usual larger slices that is enough, or the largest of them."""
    usual = [parse_topology(f"{topology.generation}:{shape}") for shape in GENERATIONS[topology.generation].examples]
    factors = {other.name: other.num_devices // topology.num_devices for other in usual}
    saved = {name: pools * (1 - 1 / factor) for name, factor in factors.items() if factor >= 2}
    if saved:
        name = next((name for name in saved if saved[name] >= short), list(saved)[-1])
        yield f"--topology {name} --mesh data={mesh.data},expert={mesh.expert * factors[name]}", saved[name]


def _narrower(model: PlannedModel, pools: float) -> Iterator[tuple[str, float]]:
    """The widest modules cut to the next width, or to half of theirs where all are alike."""
    widths = sorted({module.width for module in model.modules})
    target = widths[-2] if len(widths) > 1 else widths[-1] // 2
    if target < model.trunk.block:
        return
    widest = [module for module in model.modules if module.width == widths[-1]]
    total = sum(sum(module.layer_blocks.values()) for module in model.modules)
    cut = sum(sum(module.layer_blocks.values()) for module in widest) * (1 - target / widths[-1])
    yield f"the {len(widest)} widest modules cut from {widths[-1]} to {target}", pools * cut / total
