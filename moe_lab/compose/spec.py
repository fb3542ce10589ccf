"""What people write to compose a model. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from moe_lab.config.spec import Spec
from moe_lab.nn.backends import COMPOSABLE
from moe_lab.nn.spec import PrecisionName

if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[COMPOSABLE]


class CompositionSpec(Spec):
    """One model out of published parts.

    Attributes:
        trunk: `owner/name[@version]`.
        modules: `owner/name[@version]` each; their order is the order of the pool.
        router: a published router (`owner/name[@version]`), or an untrained one (`{type: fixed, candidate: ...}`).
        price: nats per token that running the dearest candidate must save; 0 buys all that helps.
        backend: how the routed layers are computed: `auto`, or a backend that drops nothing (`moe_lab.nn.backends`).
        precision: in which dtype the trunk lies and everything is computed; `auto` is bfloat16 on accelerators.
    """

    kind: Literal["composition"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    trunk: str
    modules: tuple[str, ...] = Field(min_length=1)
    router: str | dict[str, Any]
    price: Annotated[float, Field(ge=0)] = 0.0
    backend: BackendName = "auto"
    precision: PrecisionName = "float32"
