"""How tokens reach the devices that hold their blocks, and how results come back. Inside `shard_map` only.

`ring`: every device of a row sees all tokens of the row, runs what it holds, and the results are summed where the
tokens live. It drops nothing and is the default. `all-to-all`: a token is sent only to devices that hold blocks it
asked for, in a fixed number of places per pair of devices; for long rows, where a ring moves too much.

Shape letters: T tokens of this device, K choices, D model width, P devices of the row, L places per pair of devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe_lab.nn.pool import Pool, Routing
from moe_lab.parallel.mesh import EXPERT
from moe_lab.parallel.pool import PlacedPool, local_pool, local_routing

Compute = Callable[[jax.Array, Pool, Routing], jax.Array]
"""`expert_ffn` with everything but tokens, pool and routing decided."""


def row_of_tokens(token_T: jax.Array) -> jax.Array:
    """The number of each token of this device, counted over the row."""
    return lax.axis_index(EXPERT) * token_T.shape[0] + jnp.arange(token_T.shape[0], dtype=jnp.int32)


def _whole_row(tree):  # type: ignore[no-untyped-def]
    return jax.tree.map(lambda leaf: lax.all_gather(leaf, EXPERT, tiled=True), tree)


def ring(h_TD: jax.Array, pool: PlacedPool, routing: Routing, compute: Compute) -> jax.Array:
    """All tokens of the row meet the blocks held here; the sum goes back to where the tokens live."""
    y = compute(_whole_row(h_TD), local_pool(pool), ring_routing(pool, routing))
    return lax.psum_scatter(y, EXPERT, tiled=True)


def ring_routing(pool: PlacedPool, routing: Routing) -> Routing:
    """The routing that `ring` computes on this device."""
    routing = _whole_row(routing)
    return local_routing(pool, routing, jnp.arange(routing.expert.shape[0], dtype=jnp.int32))


class Sends(NamedTuple):
    """Which choices go to which device."""

    choice_PL: jax.Array  # int32 choice (token * K + k) in each place; T * K where a place is empty
    dropped: jax.Array  # int32 choices that found no place


def plan_sends(pool: PlacedPool, routing: Routing, places: int) -> Sends:
    """Fills the places of every device in token order."""
    tokens, choices = routing.expert.shape
    held_PE, first_PE, copy_PE = (
        lax.all_gather(table, EXPERT, tiled=True)
        for table in (pool.holdings.held_PE, pool.holdings.first_PE, pool.holdings.copy_PE)
    )
    expert_M, width_M = routing.expert.reshape(-1), routing.width.reshape(-1)
    copy_M = jnp.repeat(row_of_tokens(routing.expert), choices) % pool.copies[expert_M]
    wanted_PM = (held_PE[:, expert_M] > 0) & (width_M > first_PE[:, expert_M]) & (copy_PE[:, expert_M] == copy_M)
    place_PM = jnp.where(wanted_PM, jnp.cumsum(wanted_PM, axis=1) - 1, places)
    empty = tokens * choices
    number_M = jnp.arange(empty, dtype=jnp.int32)

    def fill(place_M: jax.Array) -> jax.Array:
        return jnp.full(places, empty, jnp.int32).at[place_M].set(number_M, mode="drop")

    dropped = jnp.maximum(wanted_PM.sum(1) - places, 0).sum()
    return Sends(jax.vmap(fill)(place_PM), dropped.astype(jnp.int32))


def arrivals(pool: PlacedPool, routing: Routing, sends: Sends) -> Routing:
    """What arrives here, in terms of the runs held here: `[P * L, 1]`."""
    choices = routing.expert.shape[1]
    used_PL = sends.choice_PL < routing.expert.size
    choice_PL = jnp.where(used_PL, sends.choice_PL, 0)
    number = _exchange(row_of_tokens(routing.expert)[choice_PL // choices]).reshape(-1)
    expert, weight = (_exchange(field.reshape(-1)[choice_PL]) for field in (routing.expert, routing.weight))
    width = _exchange(jnp.where(used_PL, routing.width.reshape(-1)[choice_PL], 0))
    arrived = Routing(*(field.reshape(-1, 1) for field in (expert, width, weight)))
    return local_routing(pool, arrived, number)


def _exchange(leaf_PL: jax.Array) -> jax.Array:
    return lax.all_to_all(leaf_PL, EXPERT, 0, 0, tiled=True)


def all_to_all(h_TD: jax.Array, pool: PlacedPool, routing: Routing, compute: Compute, places: int) -> jax.Array:
    """Each choice travels to the devices that hold its blocks, and its results travel back."""
    sends = plan_sends(pool, routing, places)
    used_PL = sends.choice_PL < routing.expert.size
    token_PL = jnp.where(used_PL, sends.choice_PL, 0) // routing.expert.shape[1]
    x = _exchange(h_TD[token_PL])
    arrived = arrivals(pool, routing, sends)
    y = compute(x.reshape(-1, x.shape[-1]), local_pool(pool), arrived)
    back = _exchange(y.reshape(x.shape))
    return jnp.zeros_like(h_TD).at[token_PL].add(jnp.where(used_PL[..., None], back, 0))
