"""What people write about devices. Imports nothing heavy."""

from __future__ import annotations

from pydantic import PositiveInt

from moe_lab.config.spec import Spec
from moe_lab.errors import LabError


class MeshSpec(Spec):
    """How many devices a run uses, and for what.

    Attributes:
        data: rows of devices that each hold all modules and share the batch.
        expert: devices of a row, over which the modules' blocks are spread.
    """

    data: PositiveInt = 1
    expert: PositiveInt = 1

    @property
    def devices(self) -> int:
        return self.data * self.expert

    def __str__(self) -> str:
        return f"data={self.data},expert={self.expert}"


def parse_mesh(text: str) -> MeshSpec:
    """`data=2,expert=4`, either left out for 1."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        sizes = {name.strip(): int(size) for name, size in pairs}
        return MeshSpec(**sizes)
    except (ValueError, TypeError):
        raise LabError(
            f'mesh "{text}" is not understood: write data=N,expert=M with whole numbers, such as data=1,expert=4'
        ) from None
