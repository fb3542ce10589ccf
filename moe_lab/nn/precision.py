"""In which dtypes a trunk is kept and computed.

Norms, softmax, router, loss and the sums of routing weights are float32 under every policy, and so is what is trained.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_lab.errors import NotFound, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """A policy.

    Attributes:
        params: of a trunk that is not trained, as it lies in memory.
        compute: of activations, and of weights where they are multiplied.
    """

    params: DTypeLike
    compute: DTypeLike


FLOAT32 = Precision(params=jnp.float32, compute=jnp.float32)
BFLOAT16 = Precision(params=jnp.bfloat16, compute=jnp.bfloat16)
NARROW_WEIGHTS = Precision(params=jnp.bfloat16, compute=jnp.float32)
"""Half the bytes of a frozen trunk, and every sum in float32: for writing on a CPU, which waits for the bytes."""
PRECISIONS: MappingProxyType[str, Precision] = MappingProxyType(
    {"float32": FLOAT32, "bfloat16": BFLOAT16, "bfloat16_weights": NARROW_WEIGHTS}
)


def choose_precision(name: str = "auto", platform: str | None = None) -> Precision:
    """The policy of this name.

    Args:
        name: `float32`, `bfloat16`, `bfloat16_weights` or `auto`: what the platform does well, which is bfloat16 on
            accelerators and float32 on CPUs, where XLA widens every matrix before it multiplies and so is slower in
            bfloat16.
        platform: `cpu`, `gpu` or `tpu`; the default device's if left out.

    Raises:
        NotFound: there is no such policy.
    """
    if name == "auto":
        return FLOAT32 if (platform or jax.default_backend()) == "cpu" else BFLOAT16
    if name not in PRECISIONS:
        raise NotFound(f'precision "{name}" does not exist.{did_you_mean(name, ["auto", *PRECISIONS])}')
    return PRECISIONS[name]


def cast_params(state: Any, precision: Precision) -> Any:
    """Parameters as the policy keeps them; what is already so is not copied."""
    return jax.tree.map(lambda leaf: leaf.astype(precision.params), state)
