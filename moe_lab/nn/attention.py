"""The attention of a layer: over a whole row, or over a chunk behind what a cache holds.

Shape letters: B batch, S sequence, D model width, H query heads, G key-value heads, A width of one head.
"""

from __future__ import annotations

from functools import partial

import jax
from einops import rearrange
from flax import nnx

from moe_lab.nn.backends import native
from moe_lab.nn.cache import Chunk, LayerCache, once_read, remember
from moe_lab.nn.ffn import Linear
from moe_lab.nn.kernels.attention import Scoring, cached_attention, causal_attention
from moe_lab.nn.layout import ONE_DEVICE, Layout
from moe_lab.nn.norms import RMSNorm
from moe_lab.nn.rope import rotary_tables, rotate
from moe_lab.nn.spec import TrunkSpec


def whole_rows(
    q_BSHA: jax.Array,
    k_BSGA: jax.Array,
    v_BSGA: jax.Array,
    segment_ids_BS: jax.Array,
    turns: tuple[jax.Array, jax.Array] | None,
    scoring: Scoring,
    layout: Layout,
) -> jax.Array:
    """`causal_attention` of queries and keys that are turned here by these sines and cosines: [B, S, H, A].

    Compiled on a CPU, as the routed layer is, where the pass is on one device; through XLA everywhere else.
    """
    if layout.spreads or native.obstacle_here(q_BSHA.dtype) is not None:
        if turns is not None:
            q_BSHA, k_BSGA = rotate(q_BSHA, *turns), rotate(k_BSGA, *turns)
        q_BHSA, k_BGSA, v_BGSA = map(_heads_first, (q_BSHA, k_BSGA, v_BSGA))
        return _heads_first(causal_attention(q_BHSA, k_BGSA, v_BGSA, segment_ids_BS, scoring))
    return native.attend(scoring, q_BSHA, k_BSGA, v_BSGA, segment_ids_BS, turns)


def behind_cache(
    q_BSHA: jax.Array,
    k_BSGA: jax.Array,
    v_BSGA: jax.Array,
    cache: LayerCache,
    chunk: Chunk,
    scoring: Scoring,
    layout: Layout,
) -> tuple[jax.Array, LayerCache]:
    """`cached_attention` of turned queries and keys, [B, S, H, A], and the cache with the chunk in it.

    Compiled on a CPU: then a token's bits are the same however its row was cut into chunks, and beside any other rows.
    """
    if not layout.spreads and native.obstacle_here(q_BSHA.dtype) is None:
        return native.attend_cached(scoring, q_BSHA, k_BSGA, v_BSGA, cache, chunk)
    q_BHSA, k_BGSA, v_BGSA = map(_heads_first, (q_BSHA, k_BSGA, v_BSGA))
    out_BHSA = cached_attention(q_BHSA, k_BGSA, v_BGSA, cache, chunk, scoring)
    return _heads_first(out_BHSA), remember(cache, once_read(chunk, out_BHSA), k_BSGA, v_BSGA)


def _heads_first(x: jax.Array) -> jax.Array:
    """[B, S, H, A] as [B, H, S, A], and back."""
    return x.swapaxes(1, 2)


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), optionally with normalised queries and keys.

    Args:
        spec: of the trunk.
        layer: which of its layers this is; it decides on window and rotary positions.
        rngs: for the weights.
        layout: where the arrays of a pass lie.
    """

    def __init__(self, spec: TrunkSpec, layer: int, *, rngs: nnx.Rngs, layout: Layout = ONE_DEVICE):
        width, head = spec.d_model, spec.attention_dim
        queries, shared = spec.num_heads * head, spec.kv_heads * head
        project = partial(Linear, width, bias=spec.attention_bias, rngs=rngs)
        self.query, self.key, self.value = project(queries), project(shared), project(shared)
        depth_scale = (2 * spec.num_layers) ** -0.5
        self.out = Linear(queries, width, bias=spec.out_bias, scale=depth_scale, rngs=rngs)
        whole = spec.qk_norm_over == "projection"
        self.query_norm = RMSNorm(queries if whole else head, spec) if spec.qk_norm else None
        self.key_norm = RMSNorm(shared if whole else head, spec) if spec.qk_norm else None
        self.norm_whole = whole
        self.rope, self.turned = spec.rope_of(layer), head if spec.rotary_dim is None else spec.rotary_dim
        self.head_dim, self.layout = head, layout
        self.scoring = Scoring(
            head**-0.5 if spec.attention_scale is None else spec.attention_scale,
            spec.attention_softcap,
            spec.window_of(layer),
        )

    def _heads(self, x_BSD: jax.Array, project: Linear, norm: RMSNorm | None, by_token: bool) -> jax.Array:
        """[B, S, heads, A], normed on this or that side of the split."""
        y = project(x_BSD, by_token=by_token)
        if norm is not None and self.norm_whole:
            y = norm(y, by_token=by_token)
        y = rearrange(y, "b s (h a) -> b s h a", a=self.head_dim)
        return norm(y, by_token=by_token) if norm is not None and not self.norm_whole else y

    def __call__(
        self,
        x_BSD: jax.Array,
        segment_ids_BS: jax.Array,
        positions_BS: jax.Array,
        cache: LayerCache | None = None,
        chunk: Chunk | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """What attention adds, [B, S, D], and the cache with this chunk in it, if there is one."""
        by_token = chunk is not None and not self.layout.spreads
        q = self._heads(x_BSD, self.query, self.query_norm, by_token)
        k = self._heads(x_BSD, self.key, self.key_norm, by_token)
        v = self._heads(x_BSD, self.value, None, by_token)
        turns = None if self.rope is None else rotary_tables(positions_BS, self.rope, self.turned)
        if cache is None or chunk is None:
            out_BSHA, after = whole_rows(q, k, v, segment_ids_BS, turns, self.scoring, self.layout), None
        else:
            if turns is not None:
                q, k = rotate(q, *turns), rotate(k, *turns)
            out_BSHA, after = behind_cache(q, k, v, cache, chunk, self.scoring, self.layout)
        return self.out(rearrange(out_BSHA, "b s h a -> b s (h a)"), by_token=by_token), after
