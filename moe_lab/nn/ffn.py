"""Matrices with a bias, and the trunk's own gated feed-forward. Parameters are stored as [in, out]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from moe_lab.nn.activations import TRUNK_ACTIVATIONS
from moe_lab.nn.products import product_by_token
from moe_lab.nn.spec import TrunkSpec


class Linear(nnx.Module):
    """A matrix and, where the checkpoint has one, a bias."""

    def __init__(self, fan_in: int, fan_out: int, *, bias: bool, scale: float = 1.0, rngs: nnx.Rngs):
        init = jax.nn.initializers.truncated_normal(scale * fan_in**-0.5)
        self.weight = nnx.Param(init(rngs.params(), (fan_in, fan_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(fan_out)) if bias else None

    def __call__(self, x: jax.Array, *, by_token: bool = False) -> jax.Array:
        """`by_token`: each token's bits are its own, and there is no gradient."""
        if by_token:
            y = product_by_token(x, self.weight[...])
        else:
            # Flat tokens: the weight gradient of a batched matmul takes XLA:CPU twice as long.
            y = x.reshape(-1, x.shape[-1]) @ self.weight[...].astype(x.dtype)
            y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class GatedFFN(nnx.Module):
    """`(act(x gate) * (x up)) down` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, spec: TrunkSpec, *, rngs: nnx.Rngs):
        self.gate = Linear(spec.d_model, spec.ffn_width, bias=spec.ffn_bias, rngs=rngs)
        self.up = Linear(spec.d_model, spec.ffn_width, bias=spec.ffn_bias, rngs=rngs)
        depth_scale = (2 * spec.num_layers) ** -0.5
        self.down = Linear(spec.ffn_width, spec.d_model, bias=spec.ffn_bias, scale=depth_scale, rngs=rngs)
        self.act = TRUNK_ACTIVATIONS[spec.activation]

    def __call__(self, x: jax.Array, *, by_token: bool = False) -> jax.Array:
        hidden = self.act(self.gate(x, by_token=by_token)) * self.up(x, by_token=by_token)
        return self.down(hidden, by_token=by_token)
