"""Short runs of token ids as rows of a table: what a document says of itself before the trunk has read much of it.

The n-gram of a token is the token and the n - 1 before it in its document. It never reaches into another document:
what lies before a document's first token counts as one special token, so that beginnings have n-grams of their own.

Shape letters: B batch, S sequence, T tokens, N = n-gram lengths 1 .. N, V values of a token, E modules, Z rows of a
table.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.routing.memory import Recent, remember_tokens

MOST_BUCKETS = 1 << 16
"""A bucket is drawn from 16 bits of a hash."""

_MIX, _SPREAD = 0x9E3779B1, 0x85EBCA6B


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ngrams:
    """Which n-grams have rows in a table, and how far what is measured of one is believed.

    Attributes:
        longest: the lengths are 1 to this.
        buckets: rows for each length.
        shrinkage: tokens; after so many a measured n-gram is half believed.
    """

    longest: int
    buckets: int
    shrinkage: float

    @property
    def table_rows(self) -> int:
        return self.longest * self.buckets

    @property
    def remembered(self) -> int:
        """Tokens in front of one that its n-grams reach back to."""
        return max(0, self.longest - 1)

    def rows(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
        """int32 [B, S, N] the rows of a token's n-grams."""
        return ngram_rows(tokens_BS, segment_ids_BS, self.longest, self.buckets)

    def rows_after(
        self, tokens_BS: jax.Array, segment_ids_BS: jax.Array, before: Recent | None
    ) -> tuple[jax.Array, Recent | None]:
        """The same of a chunk behind what earlier ones left (of whole rows: None), and what later ones need."""
        if before is None:
            return self.rows(tokens_BS, segment_ids_BS), None
        joined, after = remember_tokens(tokens_BS, segment_ids_BS, before)
        return self.rows(joined.tokens_BN, joined.segment_ids_BN)[:, self.remembered :], after

    def fit(
        self, tokens_BS: jax.Array, segment_ids_BS: jax.Array, values_BSEV: jax.Array, weight_BSE: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Means [E, V] of some values of some modules, and what each n-gram adds to them [Z, E, V]."""
        here_BS = np.asarray(segment_ids_BS) > 0
        rows_TN = np.asarray(self.rows(tokens_BS, segment_ids_BS))[here_BS]
        values_TEV, weight_TE = np.asarray(values_BSEV)[here_BS], np.asarray(weight_BSE)[here_BS]
        fits = [
            fit_ngrams(rows_TN, values_TEV[:, e], weight_TE[:, e], self.table_rows, self.shrinkage)
            for e in range(weight_TE.shape[1])
        ]
        mean_EV, table_ZEV = np.stack([mean for mean, _ in fits]), np.stack([added for _, added in fits], axis=1)
        return jnp.asarray(mean_EV, jnp.float32), jnp.asarray(table_ZEV, jnp.float32)


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
    return jnp.stack(rows, axis=-1) if rows else jnp.zeros((*tokens_BS.shape, 0), jnp.int32)


def fit_ngrams(
    rows_TN: np.ndarray, values_TV: np.ndarray, weight_T: np.ndarray, table_rows: int, shrinkage: float, sweeps: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of some values [V], and what each n-gram adds to it [table_rows, V], so that the sum predicts them.

    Ridge regression on which n-grams a token ends, by coordinate descent. A token ends one n-gram of each length, so
    all rows of one length are solved at once: the weighted sum of what the others leave over, divided by the weight of
    the tokens plus `shrinkage`. An n-gram that is hardly ever seen says next to nothing.
    """
    weight_T = weight_T.astype(np.float64)
    mean_V = weight_T @ values_TV / max(weight_T.sum(), 1e-9)
    table, left_TV = np.zeros((table_rows, values_TV.shape[1])), values_TV - mean_V
    lengths = [(row_T, np.unique(row_T), np.bincount(row_T, weight_T, table_rows)) for row_T in rows_TN.T]
    for _ in range(sweeps):
        for row_T, own, seen in lengths:
            left_TV = left_TV + table[row_T]
            total = np.stack([np.bincount(row_T, weight_T * left_T, table_rows) for left_T in left_TV.T], axis=1)
            table[own] = total[own] / (seen[own, None] + shrinkage)
            left_TV = left_TV - table[row_T]
    return mean_V, table


def _shifted(id_BS: jax.Array, segment_ids_BS: jax.Array, back: int) -> jax.Array:
    """The id so many places back, 0 where that is another document or before the row."""
    length = id_BS.shape[1]
    before = ((0, 0), (min(back, length), 0))
    same_BS = jnp.pad(segment_ids_BS, before, constant_values=-1)[:, :length] == segment_ids_BS
    return jnp.where(same_BS, jnp.pad(id_BS, before)[:, :length], jnp.uint32(0))
