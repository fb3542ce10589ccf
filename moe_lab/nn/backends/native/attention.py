"""Attention in C++: of whole rows as a differentiable function, and of a chunk behind what a cache holds.

Scores are in a core's cache only; what the backward pass needs of them it makes again.

As in the routed layer all arrays that the kernel works in are results of the call, and every number is summed in the
order of the keys: a row's bits depend neither on the other rows nor on the number of threads.

Shape letters: B rows, S positions, H query heads, G key-value heads, A width of a head, R turned pairs of a head.
"""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.nn.backends.native.build import panel_tokens
from moe_lab.nn.cache import Chunk, LayerCache, places_of

How = tuple[float, float | None, int | None]
"""Scale of the scores, their softcap, and how many tokens a token sees, itself included."""


def attend(
    how: How,
    q_BSHA: jax.Array,
    k_BSGA: jax.Array,
    v_BSGA: jax.Array,
    segment_ids_BS: jax.Array,
    turns: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """What a token sees of its document, float32[B, S, H, A]; queries and keys are turned on the way.

    Args:
        how: scale, softcap and window.
        q_BSHA: queries in float32, not turned yet.
        k_BSGA: keys, likewise.
        v_BSGA: values.
        segment_ids_BS: int32, the document of each token.
        turns: sines and cosines of rotary positions, float32[B, S, R]; they get no gradient, for positions have none.
    """
    if turns is None:
        turns = (jnp.zeros((*segment_ids_BS.shape, 0), jnp.float32),) * 2
    return _attend(how, q_BSHA, k_BSGA, v_BSGA, segment_ids_BS, *turns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how, q_BSHA, k_BSGA, v_BSGA, segment_ids_BS, sin_BSR, cos_BSR):  # type: ignore[no-untyped-def]
    return _forward(how, q_BSHA, k_BSGA, v_BSGA, segment_ids_BS, sin_BSR, cos_BSR)[0]


def _forward(how, q_BSHA, k_BSGA, v_BSGA, segment_ids_BS, sin_BSR, cos_BSR):  # type: ignore[no-untyped-def]
    rows, length, heads, width = q_BSHA.shape
    groups = k_BSGA.shape[2]
    # A panel of queries of a head is a task.
    slots = min(os.cpu_count() or 1, rows * heads * -(-length // panel_tokens()))
    results = _floats(
        q_BSHA.shape,
        (rows, groups, length, width),
        (rows, heads, length),
        (rows, heads, length),
        (slots, panel_tokens() * (3 * width + length)),
    )
    y_BSHA, turned_BGSA, top_BHS, share_BHS, _ = jax.ffi.ffi_call("moe_lab_attention", results)(
        q_BSHA, k_BSGA, v_BSGA, segment_ids_BS, sin_BSR, cos_BSR, **_attributes(how)
    )
    return y_BSHA, (q_BSHA, turned_BGSA, v_BSGA, segment_ids_BS, sin_BSR, cos_BSR, top_BHS, share_BHS)


def _backward(how, residuals, dy_BSHA):  # type: ignore[no-untyped-def]
    q_BSHA, _, v_BSGA, *_ = residuals
    length, width = q_BSHA.shape[1], q_BSHA.shape[3]
    # All queries of a key-value head are a task.
    slots = min(os.cpu_count() or 1, v_BSGA.shape[0] * v_BSGA.shape[2])
    scratch = panel_tokens() * (5 * width + 3 * length + 2) + 2 * length * width
    results = _floats(q_BSHA.shape, v_BSGA.shape, v_BSGA.shape, (slots, scratch))
    dq_BSHA, dk_BSGA, dv_BSGA, _ = jax.ffi.ffi_call("moe_lab_attention_backward", results)(
        *residuals, dy_BSHA, **_attributes(how)
    )
    return dq_BSHA, dk_BSGA, dv_BSGA, None, None, None


_attend.defvjp(_forward, _backward)


def attend_cached(
    how: How, q_BSHA: jax.Array, k_BSGA: jax.Array, v_BSGA: jax.Array, cache: LayerCache, chunk: Chunk
) -> tuple[jax.Array, LayerCache]:
    """What the tokens of a chunk see, float32[B, S, H, A], and the cache with the chunk in it: the same memory.

    A token's bits are the same however its row was cut into chunks. It has no gradient.

    Args:
        how: scale, softcap and window.
        q_BSHA: queries in float32, turned.
        k_BSGA: keys, likewise.
        v_BSGA: values.
        cache: float32, of the layer.
        chunk: where the tokens stand.
    """
    rows, length, heads, width = q_BSHA.shape
    groups, panel = k_BSGA.shape[2], panel_tokens()
    slots = min(os.cpu_count() or 1, rows * groups * -(-length * (heads // groups) // panel))
    results = _floats(
        q_BSHA.shape,
        cache.key_BGCA.shape,
        cache.value_BGCA.shape,
        (slots, panel * (3 * width + cache.slots + length)),
    )
    call = jax.ffi.ffi_call("moe_lab_cached_attention", results, input_output_aliases={3: 1, 4: 2})
    places = (chunk.segment_ids_BS, chunk.index_BS, chunk.key_segments_BC, chunk.length_B, places_of(chunk))
    y_BSHA, key_BGCA, value_BGCA, _ = call(q_BSHA, k_BSGA, v_BSGA, *cache, *places, **_attributes(how))
    return y_BSHA, LayerCache(key_BGCA, value_BGCA)


def _attributes(how: How) -> dict[str, np.generic]:
    scale, softcap, window = how
    return {"scale": np.float32(scale), "softcap": np.float32(softcap or 0), "window": np.int32(window or 0)}


def _floats(*shapes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
