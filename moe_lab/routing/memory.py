"""What routers know of a document's earlier tokens: fading sums and the last ids, over whole rows or step by step.

A function here takes what earlier chunks of the rows left, and gives what later ones need; where rows are whole it
takes and gives None. Whole rows are summed in parallel, in the order that suits the machine. Chunks are summed token
by token, so that a row's numbers do not depend on how it was cut; the two may differ in the last bits.

Padding, segment 0, stands at the end of a chunk and is not remembered.

Shape letters: B rows, S tokens of a row or of its next chunk, X values of a token, N tokens remembered.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Faded(NamedTuple):
    """A fading sum behind the last token of each row, and the document of that token: 0 before there is any."""

    total_BX: jax.Array  # float32
    segment_B: jax.Array  # int32


class Recent(NamedTuple):
    """The last tokens of each row, the newest last, with their documents: -1 where there is none yet."""

    tokens_BN: jax.Array  # int32
    segment_ids_BN: jax.Array  # int32


def nothing_faded(rows: int, width: int) -> Faded:
    """In front of the first token."""
    return Faded(jnp.zeros((rows, width), jnp.float32), jnp.zeros(rows, jnp.int32))


def nothing_recent(rows: int, length: int) -> Recent:
    """In front of the first token; so many tokens will be remembered."""
    return Recent(jnp.zeros((rows, length), jnp.int32), jnp.full((rows, length), -1, jnp.int32))


def document_starts(segment_ids_BS: jax.Array, before_B: jax.Array | None = None) -> jax.Array:
    """bool[B, S]: the first token of each document, and of each row unless it goes on with the document `before_B`."""
    first_B1 = segment_ids_BS[:, :1] != (-1 if before_B is None else before_B[:, None])
    return jnp.concatenate([first_B1, segment_ids_BS[:, 1:] != segment_ids_BS[:, :-1]], axis=1)


def newest(values_BS: jax.Array, segment_ids_BS: jax.Array, before_B: jax.Array) -> jax.Array:
    """[B], of the last token that is not padding; `before_B` where all of them are."""
    count_B = (segment_ids_BS != 0).sum(axis=1)
    last_B = jnp.take_along_axis(values_BS, jnp.maximum(count_B - 1, 0)[:, None], axis=1)[:, 0]
    return jnp.where(count_B > 0, last_B, before_B)


def fading_total(
    values_BSX: jax.Array, segment_ids_BS: jax.Array, half_life: float, before: Faded | None = None
) -> tuple[jax.Array, Faded | None]:
    """The fading sum of what a document held so far, the token's own value included, and what later tokens need.

    It grows with the document until as much fades as comes in. `half_life` counts tokens; with infinity nothing fades.
    """
    decay = 0.5 ** (1.0 / half_life)
    starts_BS = document_starts(segment_ids_BS, None if before is None else before.segment_B)
    keep_BS1 = jnp.where(starts_BS, 0.0, decay).astype(jnp.float32)[..., None]

    def join(earlier: tuple, later: tuple) -> tuple:
        return earlier[0] * later[0], earlier[1] * later[0] + later[1]

    if before is None:
        return jax.lax.associative_scan(join, (keep_BS1, values_BSX), axis=1)[1], None

    def add(total_BX: jax.Array, token: tuple) -> tuple[jax.Array, jax.Array]:
        keep_B1, value_BX, counts_B1 = token
        total_BX = jnp.where(counts_B1, total_BX * keep_B1 + value_BX, total_BX)
        return total_BX, total_BX

    tokens = (keep_BS1, values_BSX.astype(jnp.float32), (segment_ids_BS != 0)[..., None])
    total_BX, total_SBX = jax.lax.scan(add, before.total_BX, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens))
    segment_B = newest(segment_ids_BS, segment_ids_BS, before.segment_B)
    return jnp.moveaxis(total_SBX, 0, 1), Faded(total_BX, segment_B)


def fading_mean(
    values_BSX: jax.Array, segment_ids_BS: jax.Array, half_life: float, before: Faded | None = None
) -> tuple[jax.Array, Faded | None]:
    """Evidence that builds up over a document: the fading mean of what it held so far, and what later tokens need.

    The token's own value is included, other documents are not. The state is one number wider than the values.
    """
    counted = jnp.concatenate([values_BSX, jnp.ones_like(values_BSX[..., :1])], axis=-1)
    total, after = fading_total(counted, segment_ids_BS, half_life, before)
    return total[..., :-1] / total[..., -1:], after


def surrounding_mean(values_BSX: jax.Array, segment_ids_BS: jax.Array, half_life: float) -> jax.Array:
    """The fading mean of a token's document in both directions. It sees what comes after: for labels only."""
    before, _ = fading_mean(values_BSX, segment_ids_BS, half_life)
    after, _ = fading_mean(values_BSX[:, ::-1], segment_ids_BS[:, ::-1], half_life)
    return (before + after[:, ::-1]) / 2


def remember_tokens(tokens_BS: jax.Array, segment_ids_BS: jax.Array, before: Recent) -> tuple[Recent, Recent]:
    """The chunk behind the tokens remembered, [B, N + S], and what is to be remembered after it."""
    joined = Recent(
        jnp.concatenate([before.tokens_BN, tokens_BS], axis=1),
        jnp.concatenate([before.segment_ids_BN, segment_ids_BS], axis=1),
    )
    length = before.tokens_BN.shape[1]
    place_BN = (segment_ids_BS != 0).sum(axis=1)[:, None] + jnp.arange(length)
    return joined, jax.tree.map(lambda x: jnp.take_along_axis(x, place_BN, axis=1), joined)
