"""Activation functions by their config name, each name one function.

`gelu` is the older name of `gelu_tanh` (Hendrycks & Gimpel 2016, arXiv 1606.08415); `gelu_erf` is the exact one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "gelu_tanh": jax.nn.gelu,
    "gelu_erf": partial(jax.nn.gelu, approximate=False),
}

KERNEL_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu"}
"""What the kernels of the routed layers call the activations that they carry."""
