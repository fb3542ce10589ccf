"""Activation functions by their config name, each name one function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax

Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {"silu": jax.nn.silu, "gelu": jax.nn.gelu}
"""Those of the routed layers' kernels, in which `gelu` is the tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415).

The compiled kernel knows them by their place, as `enum Activation` of `backends/native/activations.h` has them.
"""

TRUNK_ACTIVATIONS: dict[str, Activation] = {
    **ACTIVATIONS,
    "gelu_tanh": jax.nn.gelu,
    "gelu_erf": partial(jax.nn.gelu, approximate=False),
}
"""Those of a trunk's own FFN; `gelu_erf` is the exact one."""

KERNEL_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu"}
"""What the kernels call the activations of trunks that they carry."""
