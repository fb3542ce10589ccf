"""What people write to have a model planned. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from moe_lab.config.spec import Spec
from moe_lab.nn.spec import TrunkSpec
from moe_lab.parallel.spec import MeshSpec


class PlannedModules(Spec):
    """Modules of one size, for planning.

    Attributes:
        name: of the group; its modules are numbered.
        width: hidden units, the same in all routed layers.
        ladder_use: share of its tokens that run each width (`{512: 0.5, 2048: 0.5}`); left out, all run all of it.
    """

    name: str
    count: PositiveInt = 1
    width: PositiveInt
    ladder_use: dict[int, Annotated[float, Field(gt=0, le=1)]] = {}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.ladder_use and abs(sum(self.ladder_use.values()) - 1) > 1e-6:
            raise ValueError(f"ladder_use of {self.name} must sum to 1, not {sum(self.ladder_use.values()):g}")
        if max(self.ladder_use, default=self.width) > self.width or min(self.ladder_use, default=1) < 1:
            raise ValueError(f"ladder_use of {self.name} must name widths from 1 to {self.width}")
        return self


class ZipfLoad(Spec):
    """Tokens of the i-th most used module go like `1 / i ** zipf`; a seed says which module is which."""

    zipf: Annotated[float, Field(ge=0)] = 0.8
    seed: NonNegativeInt = 0


class PlanSettings(Spec):
    """How a model is to run over devices.

    Attributes:
        top_k: modules per token.
        load: how unevenly modules are used: a Zipf law, or the share of each module in the order of the modules.
        rows: sequences in the batch, over all devices; left out, one per device.
        train: train the modules (float32 with Adam, the trunk frozen), instead of computing a loss.
        budget_slack: room for block rows over what the load makes the fullest device expect.
        replicate: blocks that may be stored more than once, as a share of all blocks.
        trunk_sharding: the trunk whole on each device, or spread over all of them and gathered layer by layer.
        mesh: left out, the smallest `expert` axis from 16 on at which the weights fit.
    """

    top_k: PositiveInt = 2
    load: ZipfLoad | tuple[Annotated[float, Field(ge=0)], ...] = ZipfLoad()
    rows: PositiveInt | None = None
    seq_len: Annotated[int, Field(ge=2)] = 2048
    train: bool = False
    budget_slack: Annotated[float, Field(ge=1)] = 1.25
    replicate: Annotated[float, Field(ge=0)] = 0.1
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    trunk_sharding: Literal["replicated", "sharded"] = "replicated"
    mesh: MeshSpec | None = None


class PlanSpec(PlanSettings):
    """A model by its shapes alone, to be planned for a TPU topology before anything is trained."""

    kind: Literal["plan"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    summary: str = ""
    trunk: TrunkSpec
    modules: tuple[PlannedModules, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _routed(self) -> Self:
        if not self.trunk.routed_layers:
            raise ValueError("trunk.routed_layers is empty, so there is nothing to place")
        modules = sum(group.count for group in self.modules)
        if self.top_k > modules:
            raise ValueError(f"top_k {self.top_k} is more than the {modules} modules there are")
        return self
