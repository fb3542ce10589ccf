"""Assignments (token, choice) in the order in which every block's users are one contiguous run.

Shape letters: T tokens, K choices, M = T * K assignments, E modules, N blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe_lab.nn.pool import Pool, Routing

WORD = 2**32


class Sorted(NamedTuple):
    """Assignments by (place of their module in the pool, falling width); those that run nothing come last.

    The key of a row that runs all of its module is the module's first block; one block less is the next key. Modules
    own their blocks alone, so keys of different modules do not mix.
    """

    order: jax.Array  # int32[M] assignment at each sorted row
    edge: jax.Array  # int32[N + 1] first sorted row of each key

    def rows(self) -> jax.Array:
        """int32[M], the way back: the sorted row of each assignment."""
        assignments = self.order.shape[0]
        return jnp.zeros(assignments, jnp.int32).at[self.order].set(jnp.arange(assignments, dtype=jnp.int32))

    def narrower(self, pool: Pool, owner_N: jax.Array, width_N: jax.Array) -> jax.Array:
        """First sorted row of the module `owner` that is narrower than `width`: the end of the users of a block."""
        return self.edge[pool.start[owner_N] + pool.count[owner_N] - width_N + 1]


def sort_assignments(pool: Pool, routing: Routing) -> Sorted:
    """Sorts once, in a single array where the numbers allow."""
    blocks, assignments = pool.blocks.num_blocks, routing.expert.size
    expert_M = routing.expert.reshape(-1)
    count_M = pool.count[expert_M]
    width_M = jnp.minimum(routing.width.reshape(-1), count_M)
    key_M = jnp.where(width_M > 0, pool.start[expert_M] + count_M - width_M, blocks)
    keys = jnp.arange(blocks + 1, dtype=jnp.int32)
    shift = (assignments - 1).bit_length()
    if (blocks + 1) << shift > WORD:
        order_M = jnp.argsort(key_M, stable=True).astype(jnp.int32)
        return Sorted(order_M, jnp.searchsorted(key_M[order_M], keys).astype(jnp.int32))
    # Key and assignment in one word: XLA sorts a single array many times faster than a pair.
    packed_M = jnp.sort((key_M.astype(jnp.uint32) << shift) | jnp.arange(assignments, dtype=jnp.uint32))
    order_M = (packed_M & ((1 << shift) - 1)).astype(jnp.int32)
    return Sorted(order_M, jnp.searchsorted(packed_M, keys.astype(jnp.uint32) << shift).astype(jnp.int32))


def owners(pool: Pool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The module of each block, the block's place in it counted from 1, and whether any module owns the block."""
    block_N = jnp.arange(pool.blocks.num_blocks, dtype=jnp.int32)
    owned_NE = (block_N[:, None] >= pool.start) & (block_N[:, None] < pool.start + pool.count)
    owner_N = jnp.argmax(owned_NE, axis=1)
    return owner_N, block_N - pool.start[owner_N] + 1, owned_NE.any(1)


def block_users(pool: Pool, ordered: Sorted) -> tuple[jax.Array, jax.Array]:
    """First sorted row and number of rows of each block: the rows that run it."""
    owner_N, width_N, owned_N = owners(pool)
    first_N = ordered.edge[pool.start[owner_N]]
    rows_N = ordered.narrower(pool, owner_N, width_N) - first_N
    return first_N, jnp.where(owned_N, rows_N, 0)
