"""Products of tokens with a matrix of which each token's bits are its own: for texts that are written.

Shape letters: D summed width, F columns of the result.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_lab.nn.backends import native


def product_by_token(
    x: jax.Array, weight: jax.Array, *, turned: bool = False, dtype: DTypeLike | None = None
) -> jax.Array:
    """`x @ weight` of tokens [..., D] and a weight [D, F], or [F, D] with `turned`, in `x`'s dtype or this one.

    A token's bits depend on no other token and not on how many there are, where the compiled kernel runs; elsewhere XLA
    promises no such thing.
    """
    flat = x.reshape(-1, x.shape[-1])
    if native.obstacle_here(x.dtype) is None:
        # Narrow weights stay narrow: what a step of a text waits for is their bytes.
        y = native.multiply(flat, weight if weight.dtype == jnp.bfloat16 else weight.astype(x.dtype), turned=turned)
    else:
        weight = weight.astype(x.dtype)
        sides = (((1,), (1 if turned else 0,)), ((), ()))
        y = jax.lax.dot_general(flat, weight, sides, preferred_element_type=dtype or x.dtype)
    return y.reshape(*x.shape[:-1], -1)
