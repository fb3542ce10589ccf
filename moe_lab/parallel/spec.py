"""What people write about devices. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from moe_lab.config.spec import Spec
from moe_lab.errors import LabError

Transport = Literal["ring", "all-to-all"]


class MeshSpec(Spec):
    """How many devices a run uses, and for what.

    Attributes:
        data: rows of devices that each hold all modules and share the batch.
        expert: devices of a row, over which the modules' blocks are spread.
        trunk: whole on every device, or each device holds a part and receives the rest when it is needed.
        transport: how tokens of a composed model reach the blocks: all of a row's to all of its devices, or each choice
            to the devices that hold its blocks.
    """

    data: PositiveInt = 1
    expert: PositiveInt = 1
    trunk: Literal["replicated", "sharded"] = "replicated"
    transport: Transport = "ring"

    @property
    def devices(self) -> int:
        return self.data * self.expert

    def __str__(self) -> str:
        return f"data={self.data},expert={self.expert}"


def parse_mesh(text: str) -> MeshSpec:
    """`data=2,expert=4`, either left out for 1, and after them other fields, such as `trunk=sharded`."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        settings = {name.strip(): value.strip() for name, value in pairs}
        return MeshSpec.model_validate(
            {name: value if name in ("trunk", "transport") else int(value) for name, value in settings.items()}
        )
    except ValueError:
        raise LabError(
            f'mesh "{text}" is not understood: write data=N,expert=M with whole numbers, such as data=1,expert=4, and '
            "after them, if wanted, trunk=sharded or transport=all-to-all"
        ) from None
