"""Short runs of token ids as rows of a table: what a document says of itself before the trunk has read much of it.

The n-gram of a token is the token and the n - 1 before it in its document. It never reaches into another document:
what lies before a document's first token counts as one special token, so that beginnings have n-grams of their own.

Shape letters: B batch, S sequence, N = n-gram lengths 1 .. N.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MOST_BUCKETS = 1 << 16
"""A bucket is drawn from 16 bits of a hash."""

_MIX, _SPREAD = 0x9E3779B1, 0x85EBCA6B


def ngram_rows(tokens_BS: jax.Array, segment_ids_BS: jax.Array, longest: int, buckets: int) -> jax.Array:
    """int32 [B, S, N]: the row of each n-gram that ends at a token, in a table of `longest * buckets` rows.

    In 32-bit numbers that wrap around, over the token ids back from the token itself, each raised by one (0 stands
    for what lies before the document): `h = (h ^ id) * 0x9E3779B1`, then `h = h ^ (h >> 15)`, from h = 0. The bucket
    is `((h * 0x85EBCA6B) >> 16) % buckets`; each length n has its own `buckets` rows. Published tables rely on this.
    """
    id_BS = tokens_BS.astype(jnp.uint32) + jnp.uint32(1)
    hash_BS, rows = jnp.zeros_like(id_BS), []
    for back in range(longest):
        hash_BS = (hash_BS ^ _shifted(id_BS, segment_ids_BS, back)) * jnp.uint32(_MIX)
        hash_BS = hash_BS ^ (hash_BS >> 15)
        bucket_BS = ((hash_BS * jnp.uint32(_SPREAD)) >> 16) % jnp.uint32(buckets)
        rows.append(bucket_BS.astype(jnp.int32) + back * buckets)
    return jnp.stack(rows, axis=-1)


def _shifted(id_BS: jax.Array, segment_ids_BS: jax.Array, back: int) -> jax.Array:
    """The id so many places back, 0 where that is another document or before the row."""
    length = id_BS.shape[1]
    before = ((0, 0), (min(back, length), 0))
    same_BS = jnp.pad(segment_ids_BS, before, constant_values=-1)[:, :length] == segment_ids_BS
    return jnp.where(same_BS, jnp.pad(id_BS, before)[:, :length], jnp.uint32(0))
