"""The parts of a transformer: norm, rotary positions, grouped-query attention, gated feed-forward.

Shape letters: B batch, S sequence, D model width, H query heads, G key-value heads, A width of one head, F hidden.
Parameters are stored as [in, out].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from moe_lab.nn.activations import ACTIVATIONS
from moe_lab.nn.spec import TrunkSpec

QUERY_CHUNK = 64


class Linear(nnx.Module):
    """A matrix and, where the checkpoint has one, a bias."""

    def __init__(self, fan_in: int, fan_out: int, *, bias: bool, scale: float = 1.0, rngs: nnx.Rngs):
        init = jax.nn.initializers.truncated_normal(scale * fan_in**-0.5)
        self.weight = nnx.Param(init(rngs.params(), (fan_in, fan_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(fan_out)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        # Flat tokens: the weight gradient of a batched matmul takes XLA:CPU twice as long.
        y = x.reshape(-1, x.shape[-1]) @ self.weight[...].astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """Zhang & Sennrich 2019 (arXiv 1910.07467), computed in float32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (normed * self.scale[...]).astype(x.dtype)


def rotate(x_BSHA: jax.Array, positions_BS: jax.Array, base: float) -> jax.Array:
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864) in the half-split layout of Llama checkpoints."""
    half = x_BSHA.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BS[:, :, None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle).astype(x_BSHA.dtype), jnp.cos(angle).astype(x_BSHA.dtype)
    first, second = jnp.split(x_BSHA, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def causal_attention(q_BHSA: jax.Array, k_BHSA: jax.Array, v_BHSA: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """Softmax attention in which a token sees itself and what came before it in its own document.

    Queries go in chunks that meet only the keys up to their own end: half the work of a full square, and scores that
    stay in cache. Long sequences go in eight, so that the program does not grow with them.
    """
    chunks = []
    chunk = max(QUERY_CHUNK, q_BHSA.shape[2] // 8)
    for start in range(0, q_BHSA.shape[2], chunk):
        end = min(start + chunk, q_BHSA.shape[2])
        same_document = segment_ids_BS[:, None, start:end, None] == segment_ids_BS[:, None, None, :end]
        causal = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        q, k, v = q_BHSA[:, :, start:end], k_BHSA[:, :, :end], v_BHSA[:, :, :end]
        scores = (q @ k.swapaxes(-1, -2)).astype(jnp.float32) * q.shape[-1] ** -0.5
        scores = jnp.where(same_document & causal, scores, -1e30)
        # Subtracting the maximum changes no softmax, so it needs no gradient.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        chunks.append((weights.astype(v.dtype) @ v) / weights.sum(-1, keepdims=True).astype(v.dtype))
    return jnp.concatenate(chunks, axis=2)


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), optionally with normalised queries and keys."""

    def __init__(self, spec: TrunkSpec, *, rngs: nnx.Rngs):
        width, head = spec.d_model, spec.attention_dim
        bias = spec.attention_bias
        self.query = Linear(width, spec.num_heads * head, bias=bias, rngs=rngs)
        self.key = Linear(width, spec.kv_heads * head, bias=bias, rngs=rngs)
        self.value = Linear(width, spec.kv_heads * head, bias=bias, rngs=rngs)
        depth_scale = (2 * spec.num_layers) ** -0.5
        self.out = Linear(spec.num_heads * head, width, bias=bias, scale=depth_scale, rngs=rngs)
        self.query_norm = RMSNorm(head, spec.rms_norm_eps) if spec.qk_norm else None
        self.key_norm = RMSNorm(head, spec.rms_norm_eps) if spec.qk_norm else None
        self.spec = spec

    def __call__(self, x_BSD: jax.Array, segment_ids_BS: jax.Array, positions_BS: jax.Array) -> jax.Array:
        spec = self.spec
        q, k, v = (
            rearrange(project(x_BSD), "b s (h a) -> b s h a", a=spec.attention_dim)
            for project in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = rotate(q, positions_BS, spec.rope_base), rotate(k, positions_BS, spec.rope_base)
        k, v = (repeat(t, "b s g a -> b s (g n) a", n=spec.num_heads // spec.kv_heads) for t in (k, v))
        q, k, v = (rearrange(t, "b s h a -> b h s a") for t in (q, k, v))
        return self.out(rearrange(causal_attention(q, k, v, segment_ids_BS), "b h s a -> b s (h a)"))


class GatedFFN(nnx.Module):
    """`(act(x gate) * (x up)) down` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, spec: TrunkSpec, *, rngs: nnx.Rngs):
        self.gate = Linear(spec.d_model, spec.ffn_width, bias=spec.ffn_bias, rngs=rngs)
        self.up = Linear(spec.d_model, spec.ffn_width, bias=spec.ffn_bias, rngs=rngs)
        depth_scale = (2 * spec.num_layers) ** -0.5
        self.down = Linear(spec.ffn_width, spec.d_model, bias=spec.ffn_bias, scale=depth_scale, rngs=rngs)
        self.act = ACTIVATIONS[spec.activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.act(self.gate(x)) * self.up(x))
