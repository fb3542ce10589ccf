"""Grouped-query attention through XLA: the definition, over a whole row, or over a chunk behind what a cache holds.

Shape letters: B batch, S sequence, H query heads, G key-value heads, N = H / G, A width of one head, C slots of a
cache.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from moe_lab.nn.cache import Chunk, LayerCache, remembered, rows_of_layer

QUERY_CHUNK = 64
_UNSEEN = -1e30


class Scoring(NamedTuple):
    """What is done to scores in front of the softmax, and how many tokens a token sees, itself included."""

    scale: float
    softcap: float | None = None
    window: int | None = None

    def score(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """float32 scores of queries `[..., S, A]` and keys `[..., C, A]`."""
        scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32) * self.scale
        return scores if self.softcap is None else self.softcap * jnp.tanh(scores / self.softcap)


def causal_attention(
    q_BHSA: jax.Array, k_BGSA: jax.Array, v_BGSA: jax.Array, segment_ids_BS: jax.Array, scoring: Scoring
) -> jax.Array:
    """Softmax attention in which a token sees itself and what came before it in its own document.

    Queries go in chunks that meet only the keys up to their own end: half the work of a full square, and scores that
    stay in cache. Long sequences go in eight, so that the program does not grow with them.
    """
    q_BGNSA = _in_groups(q_BHSA, k_BGSA.shape[1])
    chunks = []
    chunk = max(QUERY_CHUNK, q_BHSA.shape[2] // 8)
    for start in range(0, q_BHSA.shape[2], chunk):
        end = min(start + chunk, q_BHSA.shape[2])
        first = 0 if scoring.window is None else max(0, start - scoring.window + 1)
        seen = segment_ids_BS[:, None, None, start:end, None] == segment_ids_BS[:, None, None, None, first:end]
        seen = seen & (jnp.arange(start, end)[:, None] >= jnp.arange(first, end))
        if scoring.window is not None:
            seen = seen & (jnp.arange(start, end)[:, None] - jnp.arange(first, end) < scoring.window)
        q, k, v = q_BGNSA[:, :, :, start:end], k_BGSA[:, :, first:end], v_BGSA[:, :, first:end]
        scores = jnp.where(seen, _grouped(scoring.score, q, k), _UNSEEN)
        # Subtracting the maximum changes no softmax, so it needs no gradient.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True).astype(v.dtype)
        chunks.append(_grouped(jnp.matmul, weights.astype(v.dtype), v) / total)
    return rearrange(jnp.concatenate(chunks, axis=3), "b g n s a -> b (g n) s a")


def cached_attention(
    q_BHSA: jax.Array, k_BGSA: jax.Array, v_BGSA: jax.Array, cache: LayerCache, chunk: Chunk, scoring: Scoring
) -> jax.Array:
    """The same over a chunk's own keys and those that the cache held before it."""
    cache = rows_of_layer(cache, chunk)
    q_BGNSA = _in_groups(q_BHSA, k_BGSA.shape[1])
    index_BC, segments_BC = remembered(chunk, cache.slots)
    own_BS = jnp.broadcast_to(jnp.arange(q_BHSA.shape[2]), chunk.segment_ids_BS.shape)
    earlier = own_BS[:, :, None] >= own_BS[:, None, :]
    old = _seen(chunk, index_BC, segments_BC, scoring.window) & (index_BC >= 0)[:, None]
    new = _seen(chunk, chunk.index_BS, chunk.segment_ids_BS, scoring.window) & earlier
    keys = (cache.key_BGCA.astype(q_BHSA.dtype), k_BGSA)
    values = (cache.value_BGCA.astype(q_BHSA.dtype), v_BGSA)
    scores = jnp.concatenate(
        [
            jnp.where(seen[:, None, None], _grouped(scoring.score, q_BGNSA, key), _UNSEEN)
            for seen, key in zip((old, new), keys, strict=True)
        ],
        axis=-1,
    )
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    parts = jnp.split(weights.astype(q_BHSA.dtype), [cache.slots], axis=-1)
    sums = [_grouped(jnp.matmul, part, value) for part, value in zip(parts, values, strict=True)]
    out_BGNSA = (sums[0] + sums[1]) / weights.sum(-1, keepdims=True).astype(q_BHSA.dtype)
    return rearrange(out_BGNSA, "b g n s a -> b (g n) s a")


def _in_groups(q_BHSA: jax.Array, groups: int) -> jax.Array:
    return rearrange(q_BHSA, "b (g n) s a -> b g n s a", g=groups)


def _grouped(function, x_BGNSA, y_BGCA):  # type: ignore[no-untyped-def]
    """A matrix product of all query heads of a group with what they share, which is not repeated for each."""
    heads = x_BGNSA.shape[2]
    result = function(rearrange(x_BGNSA, "b g n s a -> b g (n s) a"), y_BGCA)
    return rearrange(result, "b g (n s) c -> b g n s c", n=heads)


def _seen(chunk: Chunk, index_BC: jax.Array, segments_BC: jax.Array, window: int | None) -> jax.Array:
    """Which keys are of a token's document and inside its window: bool[B, S, C]."""
    same_document = chunk.segment_ids_BS[:, :, None] == segments_BC[:, None, :]
    if window is None:
        return same_document
    return same_document & (chunk.index_BS[:, :, None] - index_BC[:, None, :] < window)
