"""The routed layer with a fixed number of rows for every block: batched matmuls over static shapes.

What a block's rows exceed its capacity by is left out, and `rows_beyond_budget` counts it: for training only. The
tokens that run least of a module lose their place first.

Shape letters: T tokens, K choices, M = T * K assignments, E modules, N blocks, R rows of a block, D model width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from moe_lab.nn.activations import ACTIVATIONS
from moe_lab.nn.kernels.sorting import block_users, sort_assignments
from moe_lab.nn.pool import Pool, Routing

CAPACITY_FACTOR = 1.25
"""Room beyond an even spread of all assignments over all modules, as in GShard (arXiv 2006.16668, section 2.2)."""


def rows_per_block(pool: Pool, routing: Routing, budget: int | None) -> int:
    """The capacity: the budget's even share, or 1.25 times an even spread in which everyone runs all of a module."""
    if budget is not None:
        return max(1, budget // pool.blocks.num_blocks)
    return min(routing.expert.size, math.ceil(CAPACITY_FACTOR * routing.expert.size / pool.num_modules))


def rows_beyond_budget(pool: Pool, routing: Routing, budget: int | None) -> jax.Array:
    """Block rows beyond the capacity of their block: int32."""
    rows_N = block_users(pool, sort_assignments(pool, routing))[1]
    return jnp.maximum(rows_N - rows_per_block(pool, routing, budget), 0).sum()


def expert_ffn(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str, budget: int | None) -> jax.Array:
    """Gathers `[N, C, D]` rows, runs every block on its own, and adds the results to their tokens."""
    capacity = rows_per_block(pool, routing, budget)
    ordered = sort_assignments(pool, routing)
    first_N, rows_N = block_users(pool, ordered)
    place_R = jnp.arange(capacity, dtype=jnp.int32)
    used_NR = place_R < rows_N[:, None]
    assignment_NR = ordered.order[jnp.where(used_NR, first_N[:, None] + place_R, 0)]
    token_NR = assignment_NR // routing.expert.shape[1]
    weight_NR = jnp.where(used_NR, routing.weight.reshape(-1)[assignment_NR], 0)
    gate, up, down = pool.blocks
    x_NRD = jnp.where(used_NR[..., None], h_TD[token_NR], 0)
    hidden = ACTIVATIONS[activation](jnp.einsum("ncd,ndb->ncb", x_NRD, gate)) * jnp.einsum("ncd,ndb->ncb", x_NRD, up)
    out_NRD = jnp.einsum("ncb,nbd->ncd", hidden, down, preferred_element_type=jnp.float32) * weight_NR[..., None]
    return jnp.zeros(h_TD.shape, jnp.float32).at[token_NR].add(out_NRD).astype(h_TD.dtype)
