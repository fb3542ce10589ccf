"""Products of a chunk's tokens with a whole matrix, and their norms, in C++: each token's bits are its own.

XLA cuts a sum as it sees fit for its number of rows, and every cut sums in another order. Here a number is summed in
one order whatever comes with it, so a text that is written has the same bits beside any others. The matrix is read
where it lies, once as long as tokens are few.

Shape letters: T tokens, D summed width, F columns of the result.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def multiply(x_TD: jax.Array, weight: jax.Array, *, turned: bool = False) -> jax.Array:
    """float32[T, F] of float32 tokens and a weight [D, F], or [F, D] with `turned`. It has no gradient.

    The weight is float32 or bfloat16, which is widened number by number where it is multiplied.
    """
    result = jax.ShapeDtypeStruct((x_TD.shape[0], weight.shape[0 if turned else 1]), jnp.float32)
    name = "moe_lab_multiply_narrow" if weight.dtype == jnp.bfloat16 else "moe_lab_multiply"
    return jax.ffi.ffi_call(name, result)(x_TD, weight, turned=turned)


def norm(x_TD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """`x / sqrt(mean(x^2) + eps) * scale`, float32[T, D]. It has no gradient."""
    result = jax.ShapeDtypeStruct(x_TD.shape, jnp.float32)
    return jax.ffi.ffi_call("moe_lab_norm", result)(x_TD, scale_D, eps=np.float32(eps))
