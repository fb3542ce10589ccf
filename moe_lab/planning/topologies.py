"""TPU topologies by name, and their compiler: `libtpu` compiles for chips that are not here.

The table says what a name means, so that a mistake is found before anything is loaded. Devices come from the compiler.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_lab.errors import LabError, Unavailable

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What all chips of one kind share.

    Args:
        hbm_gib: memory of a device that a program may use, as the compiler gives it.
        devices_per_chip: devices that the compiler counts; a tpu7x chip has two, each with half the chip's memory.
        axes: numbers in the shape of a topology.
        largest: chips of the largest slice that is sold.
        examples: shapes to name in messages.
    """

    hbm_gib: float
    devices_per_chip: int
    axes: int
    largest: int
    examples: tuple[str, ...]


GENERATIONS: dict[str, Generation] = {
    "v5e": Generation(
        hbm_gib=15.75, devices_per_chip=1, axes=2, largest=256, examples=("2x2", "2x4", "4x4", "4x8", "8x8", "16x16")
    ),
    "v5p": Generation(
        hbm_gib=95.74, devices_per_chip=1, axes=3, largest=8960, examples=("2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x4x8")
    ),
    "v6e": Generation(
        hbm_gib=31.25, devices_per_chip=1, axes=2, largest=256, examples=("2x2", "2x4", "4x4", "4x8", "8x8", "16x16")
    ),
    "tpu7x": Generation(
        hbm_gib=94.75, devices_per_chip=2, axes=3, largest=9216, examples=("2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x4x8")
    ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPU chips."""

    generation: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def _kind(self) -> Generation:
        return GENERATIONS[self.generation]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices_per_chip(self) -> int:
        return self._kind.devices_per_chip

    @property
    def num_devices(self) -> int:
        return self.chips * self._kind.devices_per_chip

    @property
    def hbm_bytes(self) -> int:
        """Memory of one device that a program may use."""
        return int(self._kind.hbm_gib * GIB)


def known_topologies() -> str:
    """The names to choose from, with their chips, on one line."""
    named = [parse_topology(f"{name}:{shape}") for name, kind in GENERATIONS.items() for shape in kind.examples]
    return ", ".join(f"{topology.name} ({topology.chips})" for topology in named)


def parse_topology(name: str) -> Topology:
    """Reads `v5p:4x4x4`: any shape of a known generation that whole hosts can fill."""
    generation, _, text = name.partition(":")
    if generation not in GENERATIONS or not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})*", text):
        raise LabError(
            f'unknown topology "{name}"; write GENERATION:SHAPE, such as these (chips): {known_topologies()}'
        )
    kind = GENERATIONS[generation]
    topology = Topology(generation, tuple(map(int, text.split("x"))))
    if len(topology.shape) != kind.axes:
        shape = "x".join("NMK"[: kind.axes])
        raise LabError(f"topology {name}: {generation} has shapes {shape}, such as {generation}:{kind.examples[-1]}")
    if topology.chips > 1 and any(axis % 2 for axis in topology.shape[:2]):
        raise LabError(f"topology {name}: hosts are 2x2 chips, so the first two numbers must be even")
    if topology.chips > kind.largest:
        raise LabError(f"topology {name} has {topology.chips} chips; {generation} comes with {kind.largest} at most")
    return topology


def prepare_compiler() -> None:
    """Finds the compiler and keeps jax from looking for chips. Before jax starts; harmless after.

    `TPU_COMPILER` names a folder that holds `libtpu`, for environments that do not want it at every start.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # the lock is for chips, and other processes may compile as well
    # Without these it complains on stderr that it cannot ask for them. What it compiles for does not depend on them.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    folder = os.environ.get("TPU_COMPILER", "")
    if folder and folder not in sys.path and (Path(folder) / "libtpu" / "libtpu.so").exists():
        sys.path.append(folder)
    if importlib.util.find_spec("libtpu") is None:
        raise Unavailable("compiling for TPUs needs their compiler, libtpu: pip install 'moe-lab[tpu-plan]'")


def topology_devices(topology: Topology) -> Sequence[Any]:
    """The devices, as jax arranges them; nothing can run on them."""
    prepare_compiler()
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(topology.name, platform="tpu").devices
    except Exception as error:
        first = str(error).splitlines()[0]
        raise LabError(f"topology {topology.name}: the TPU compiler refuses it: {first}") from error
    assert len(devices) == topology.num_devices, f"{topology.name}: {len(devices)} devices"
    return devices
