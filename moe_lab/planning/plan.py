"""What is known about a model on a topology: its placement, what the compiler says of its step, and the verdict."""

from __future__ import annotations

import dataclasses

from moe_lab.parallel.placement import Placement
from moe_lab.parallel.spec import MeshSpec
from moe_lab.planning.advice import Change
from moe_lab.planning.compiled import Compiled, Overflow
from moe_lab.planning.model import PlannedModel
from moe_lab.planning.topologies import Topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCheck:
    """The compiler's FLOPs of one routed layer on one device, grouped matmuls counted as if their budget were full."""

    forward_flops: float
    gradient_flops: float
    forward_seconds: float
    gradient_seconds: float

    @property
    def ratio(self) -> float:
        """Forward and backward over three forwards: 1 is ideal."""
        return self.gradient_flops / (3 * self.forward_flops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known about a model on a topology. Bytes are those of one device."""

    model: PlannedModel
    topology: Topology
    mesh: MeshSpec
    rows: int
    placements: dict[int, Placement]
    expected_rows: int
    """Block rows that the load makes the fullest device expect, per layer."""
    budget: int
    backend: str
    own_bytes: dict[str, int]
    """Bytes of each argument of the step, counted from placement, shapes and shardings."""
    result: Compiled | Overflow
    layer: LayerCheck | None
    changes: tuple[Change, ...]
    seconds: float

    @property
    def fits(self) -> bool:
        return isinstance(self.result, Compiled)

    @property
    def agreement(self) -> float | None:
        """The compiler's bytes of all arguments over our own count of them."""
        if isinstance(self.result, Compiled):
            return self.result.argument_bytes / sum(self.own_bytes.values())
        return None

    @property
    def most_rows(self) -> int | None:
        """The largest batch that should fit: what is not arguments grows with it."""
        if not isinstance(self.result, Compiled):
            return None
        weights = self.result.argument_bytes
        room, used = self.topology.hbm_bytes - weights, max(self.result.peak_bytes - weights, 1)
        devices = self.topology.num_devices
        return max(self.rows, int(self.rows * room / used) // devices * devices)

    @property
    def verdict(self) -> str:
        if isinstance(self.result, Overflow):
            return f"does not fit, short by {self.result.short_bytes / 2**30:.2f} GiB per device"
        free = self.topology.hbm_bytes - self.result.peak_bytes
        return f"fits, with {free / 2**30:.2f} GiB per device to spare"
