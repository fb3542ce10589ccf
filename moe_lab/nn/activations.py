"""Activation functions by their config name."""

from __future__ import annotations

from collections.abc import Callable

import jax

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"silu": jax.nn.silu, "gelu": jax.nn.gelu}
"""The compiled kernel knows them by their place, as `enum Activation` of `backends/native/activations.h` has them."""
