"""The norm of the trunk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from moe_lab.nn.backends import native
from moe_lab.nn.spec import TrunkSpec


class RMSNorm(nnx.Module):
    """Zhang & Sennrich 2019 (arXiv 1910.07467), computed in float32.

    Args:
        width: of the axis that is normed, the last.
        spec: says eps, what is added to the scale, and in which dtype it multiplies.
    """

    def __init__(self, width: int, spec: TrunkSpec):
        self.scale = nnx.Param(jnp.full(width, 1.0 - spec.norm_offset, jnp.float32))
        self.eps, self.offset = spec.rms_norm_eps, spec.norm_offset
        self.cast_first = spec.norm_cast == "before_scale"

    def __call__(self, x: jax.Array, *, by_token: bool = False) -> jax.Array:
        """`by_token`: each token's bits are its own, and there is no gradient."""
        scale = self.scale[...].astype(jnp.float32)
        if self.offset:
            scale = scale + self.offset
        if by_token and native.obstacle_here(x.dtype) is None:
            return native.norm(x.reshape(-1, x.shape[-1]), scale, self.eps).reshape(x.shape)
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        if self.cast_first:
            return normed.astype(x.dtype) * scale.astype(x.dtype)
        return (normed * scale).astype(x.dtype)
