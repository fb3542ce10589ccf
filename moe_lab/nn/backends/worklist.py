"""The routed layer with work proportional to the blocks routed: nothing is dropped, nothing is padded to the widest.

Assignments (token, choice) are sorted by (module, falling width) and cut into tiles of rows of one module. A tile runs
as many blocks as its widest row asks for; narrower rows are masked out of the later blocks. The number of tiles and
of blocks per tile is dynamic, so time follows the routing. The backward pass recomputes the hidden activations, and
every sum has a fixed order, so results repeat bit for bit.

Shape letters: T tokens, K choices, M = T * K assignments, R rows per tile, G tiles, D model width, B block.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe_lab.nn.activations import ACTIVATIONS
from moe_lab.nn.pool import Blocks, Pool, Routing

MAX_TILE_ROWS = 256


class Plan(NamedTuple):
    """Where every assignment goes. All integer; no gradient flows through it."""

    token: jax.Array  # int32[G * R] token of each tile row, T where the row is empty
    width: jax.Array  # int32[G * R] blocks that the row runs, 0 where it is empty
    slot: jax.Array  # int32[T, K] tile row of each assignment, G * R where it runs nothing
    first_block: jax.Array  # int32[G] pool index of the tile's first block
    num_tiles: jax.Array  # int32[] tiles in use


def tile_rows(assignments: int) -> int:
    """Rows per tile: large enough to feed a matmul, small enough not to be mostly padding."""
    return max(8, min(MAX_TILE_ROWS, 1 << (assignments - 1).bit_length()))


def make_plan(pool: Pool, routing: Routing) -> Plan:
    """Sorts the assignments and cuts them into tiles."""
    tokens, choices = routing.expert.shape
    assignments, modules = tokens * choices, pool.num_modules
    rows = tile_rows(assignments)
    capacity = assignments // rows + modules  # tiles: one partly filled per module at most
    expert_M = routing.expert.reshape(-1)
    width_M = jnp.minimum(routing.width.reshape(-1), pool.count[expert_M])
    owner_M = jnp.where(width_M > 0, expert_M, modules)
    order_M = jnp.lexsort((-width_M, owner_M)).astype(jnp.int32)
    size_E = jnp.bincount(owner_M, length=modules).astype(jnp.int32)
    tiles_E = (size_E + rows - 1) // rows
    last_tile_E, first_row_E = jnp.cumsum(tiles_E), jnp.cumsum(size_E) - size_E

    tile_G = jnp.arange(capacity, dtype=jnp.int32)
    owner_G = jnp.minimum(jnp.searchsorted(last_tile_E, tile_G, side="right"), modules - 1)
    tile_in_owner_G = tile_G - (last_tile_E - tiles_E)[owner_G]
    rank_GR = tile_in_owner_G[:, None] * rows + jnp.arange(rows, dtype=jnp.int32)
    filled_GR = (rank_GR < size_E[owner_G][:, None]) & (tile_G < last_tile_E[-1])[:, None]
    assignment_GR = order_M[jnp.minimum(first_row_E[owner_G][:, None] + rank_GR, assignments - 1)]

    empty = capacity * rows
    slot_M = jnp.full(assignments + 1, empty, jnp.int32)
    slot_M = slot_M.at[jnp.where(filled_GR, assignment_GR, assignments).reshape(-1)].set(
        jnp.arange(empty, dtype=jnp.int32)
    )[:assignments]
    return Plan(
        token=jnp.where(filled_GR, assignment_GR // choices, tokens).reshape(-1),
        width=jnp.where(filled_GR, width_M[assignment_GR], 0).reshape(-1),
        slot=slot_M.reshape(tokens, choices),
        first_block=pool.start[owner_G],
        num_tiles=last_tile_E[-1],
    )


def _gather(values_TD: jax.Array, index: jax.Array) -> jax.Array:
    return values_TD.at[index].get(mode="fill", fill_value=0)


def _rows(values: jax.Array, tile: jax.Array, rows: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(values, tile * rows, rows)


def _set_rows(values: jax.Array, tile: jax.Array, update: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(values, update, tile * update.shape[0], 0)


def _block(blocks: Blocks, index: jax.Array) -> Blocks:
    return Blocks(*(lax.dynamic_index_in_dim(w, index, keepdims=False) for w in blocks))


def _tiles_forward(x_RD: jax.Array, blocks: Blocks, plan: Plan, activation: str) -> jax.Array:
    """Runs every tile: rows in, rows out, unweighted."""
    act, rows = ACTIVATIONS[activation], x_RD.shape[0] // plan.first_block.shape[0]

    def run_tile(tile: jax.Array, y: jax.Array) -> jax.Array:
        x, width = _rows(x_RD, tile, rows), _rows(plan.width, tile, rows)

        def add_block(j: jax.Array, out: jax.Array) -> jax.Array:
            gate, up, down = _block(blocks, plan.first_block[tile] + j)
            return out + jnp.where((width > j)[:, None], (act(x @ gate) * (x @ up)) @ down, 0.0)

        out = lax.fori_loop(0, width[0], add_block, jnp.zeros((rows, x.shape[1]), x.dtype))
        return _set_rows(y, tile, out)

    return lax.fori_loop(0, plan.num_tiles, run_tile, jnp.zeros_like(x_RD))


def _tiles_backward(
    x_RD: jax.Array, dy_RD: jax.Array, weight_R: jax.Array, blocks: Blocks, plan: Plan, activation: str
) -> tuple[jax.Array, jax.Array, Blocks]:
    """Gradients of the rows, of the routing weights and of the blocks, hidden activations recomputed."""
    act, rows = ACTIVATIONS[activation], x_RD.shape[0] // plan.first_block.shape[0]

    def add_to(total: jax.Array, index: jax.Array, term: jax.Array) -> jax.Array:
        return total.at[index].add(term, mode="promise_in_bounds", unique_indices=True)

    def run_tile(tile: jax.Array, totals: tuple) -> tuple:
        dx, dweight, dblocks = totals
        x, dy, width, weight = (_rows(v, tile, rows) for v in (x_RD, dy_RD, plan.width, weight_R))

        def add_block(j: jax.Array, carry: tuple) -> tuple:
            dx, dweight, (dgate, dup, ddown) = carry
            index = plan.first_block[tile] + j
            gate, up, down = _block(blocks, index)
            used = (width > j)[:, None]
            a, u = x @ gate, x @ up
            s, act_vjp = jax.vjp(act, a)
            hidden = jnp.where(used, s * u, 0.0)
            dhidden_unweighted = jnp.where(used, dy @ down.T, 0.0)
            dhidden = (dhidden_unweighted * weight[:, None]).astype(x.dtype)
            (da,), du = act_vjp(dhidden * u), dhidden * s
            dx = dx + (da @ gate.T + du @ up.T)
            dweight = dweight + (hidden * dhidden_unweighted).sum(-1).astype(dweight.dtype)
            dblocks = Blocks(
                add_to(dgate, index, x.T @ da),
                add_to(dup, index, x.T @ du),
                add_to(ddown, index, (hidden * weight[:, None]).astype(x.dtype).T @ dy),
            )
            return dx, dweight, dblocks

        start = (jnp.zeros_like(x), jnp.zeros_like(weight), dblocks)
        tile_dx, tile_dweight, dblocks = lax.fori_loop(0, width[0], add_block, start)
        return _set_rows(dx, tile, tile_dx), _set_rows(dweight, tile, tile_dweight), dblocks

    zeros = (jnp.zeros_like(x_RD), jnp.zeros_like(weight_R), jax.tree.map(jnp.zeros_like, blocks))
    return lax.fori_loop(0, plan.num_tiles, run_tile, zeros)


def _forward(h_TD: jax.Array, blocks: Blocks, weight_TK: jax.Array, plan: Plan, activation: str) -> jax.Array:
    y_RD = _tiles_forward(_gather(h_TD, plan.token), blocks, plan, activation)
    y_TKD = _gather(y_RD, plan.slot)
    return (y_TKD * weight_TK[:, :, None]).sum(1).astype(h_TD.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _run(h_TD: jax.Array, blocks: Blocks, weight_TK: jax.Array, plan: Plan, activation: str) -> jax.Array:
    return _forward(h_TD, blocks, weight_TK, plan, activation)


def _run_forward(h_TD, blocks, weight_TK, plan, activation):  # type: ignore[no-untyped-def]
    return _forward(h_TD, blocks, weight_TK, plan, activation), (h_TD, blocks, weight_TK, plan)


def _run_backward(activation, residuals, dy_TD):  # type: ignore[no-untyped-def]
    h_TD, blocks, weight_TK, plan = residuals
    slots = plan.token.shape[0]
    weight_R = jnp.zeros(slots + 1, weight_TK.dtype).at[plan.slot].set(weight_TK)[:slots]
    dx_RD, dweight_R, dblocks = _tiles_backward(
        _gather(h_TD, plan.token), _gather(dy_TD, plan.token), weight_R, blocks, plan, activation
    )
    dh_TD = _gather(dx_RD, plan.slot).sum(1)
    return dh_TD, dblocks, _gather(dweight_R, plan.slot), None


_run.defvjp(_run_forward, _run_backward)


def expert_ffn(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str) -> jax.Array:
    """Runs exactly the routed blocks."""
    plan = jax.tree.map(lax.stop_gradient, make_plan(pool, routing))
    return _run(h_TD, pool.blocks, routing.weight, plan, activation)
