"""The routed layer with work proportional to the blocks routed: nothing is dropped, nothing is padded to the widest.

Assignments (token, choice) are sorted by module and falling width, so that the users of any block are one contiguous
run of rows. A width is taken apart into slabs, runs of 1, 2 or 8 blocks, say: as few as make it up exactly, the widest
first. The rows that share a slab are a contiguous run too, so the work is a list of slabs, each with its run of rows,
and a row never meets a block that it did not ask for. A slab's weights are copied out of the pool once and meet their
rows in tiles of a few static sizes. Every loop has a dynamic trip count, so time follows the routing.

The backward pass recomputes the hidden activations. Every sum has a fixed order, and a row's slabs and tiles depend on
its own module's rows only, so results repeat bit for bit and other modules cannot change them.

Shape letters: T tokens, K choices, M = T * K assignments, E modules, N blocks (or slabs: one ends at every block),
R rows of a tile, D model width, W hidden units of a slab.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from moe_lab.nn.activations import ACTIVATIONS
from moe_lab.nn.kernels.sorting import owners, sort_assignments
from moe_lab.nn.pool import Blocks, Pool, Routing

SLAB_UNITS = 1024
SLAB_BLOCKS = 16
"""The widest slab: wide enough that its weights are worth their copy, in hidden units and in blocks."""
TILE_ROWS = (256, 128, 32)
"""Rows of a tile. A run of rows is cut into as many of the first as fit, then of the second, and so on."""
SPARE = 4
"""One row in this many of a tile may stay empty: that costs less than ending the run with several smaller tiles."""
RADIX = 4

Carry = TypeVar("Carry")


class SlabPlan(NamedTuple):
    """Where every assignment goes. All integer; no gradient flows through it."""

    order: jax.Array  # int32[M + padding] assignment of each sorted row
    row: jax.Array  # int32[T, K] sorted row of each assignment
    block: jax.Array  # int32[N] first block of each slab; slabs in use come first, narrow ones before wide ones
    first: jax.Array  # int32[N] first sorted row of each slab
    rows: jax.Array  # int32[N] rows of each slab
    begin: jax.Array  # int32[sizes + 1] slabs of size i are begin[i] : begin[i + 1]


def slab_sizes(block: int) -> tuple[int, ...]:
    """Blocks of a slab, rising: each size divides the next. They depend on nothing that a new module changes."""
    widest = 1
    while widest * 2 <= min(SLAB_UNITS // block, SLAB_BLOCKS):
        widest *= 2
    sizes = [widest]
    while sizes[0] > 1:
        sizes.insert(0, max(1, sizes[0] // RADIX))
    return tuple(sizes)


def tile_rows(assignments: int) -> tuple[int, ...]:
    """The tile sizes that this many assignments can fill."""
    return tuple(rows for rows in TILE_ROWS if rows < 2 * assignments) or TILE_ROWS[-1:]


def make_plan(pool: Pool, routing: Routing) -> SlabPlan:
    """Sorts the assignments, and lists the slabs with their rows."""
    sizes, ordered = slab_sizes(pool.blocks.gate.shape[2]), sort_assignments(pool, routing)
    assignments = ordered.order.shape[0]

    owner_N, width_N, owned_N = owners(pool)
    beyond_N = pool.count[owner_N] + 1
    # The slab that ends at a block is the widest that starts at a multiple of its size. Its users reach the block,
    # but not the next multiple of the next size, where a wider slab takes over.
    size_N, limit_N = jnp.zeros_like(width_N), beyond_N
    for index, size in enumerate(sizes):
        ends_N = width_N % size == 0
        taken_over_N = beyond_N if size == sizes[-1] else (width_N // sizes[index + 1] + 1) * sizes[index + 1]
        size_N = jnp.where(ends_N, index, size_N)
        limit_N = jnp.where(ends_N, jnp.minimum(taken_over_N, beyond_N), limit_N)

    first_N, end_N = (ordered.narrower(pool, owner_N, width) for width in (limit_N, width_N))
    rows_N = jnp.where(owned_N, end_N - first_N, 0)
    rank_N = jnp.where(rows_N > 0, size_N, len(sizes))
    slab_N = jnp.argsort(rank_N, stable=True)
    block_N = jnp.arange(1, 1 + len(width_N), dtype=jnp.int32) - jnp.asarray(sizes, jnp.int32)[size_N]
    return SlabPlan(
        order=jnp.pad(ordered.order, (0, tile_rows(assignments)[0])),
        row=ordered.rows().reshape(routing.expert.shape),
        block=block_N[slab_N],
        first=first_N[slab_N],
        rows=rows_N[slab_N],
        begin=jnp.searchsorted(rank_N[slab_N], jnp.arange(len(sizes) + 1)).astype(jnp.int32),
    )


def _for_each_slab(
    plan: SlabPlan, blocks: Blocks, run_slab: Callable[[jax.Array, int, Carry], Carry], carry: Carry
) -> Carry:
    """Calls `run_slab(slab, size, carry)`, size after size, because shapes inside a loop are static."""
    for rank, size in enumerate(slab_sizes(blocks.gate.shape[2])):
        if size > blocks.num_blocks:
            break

        def body(slab: jax.Array, carry: Carry, size: int = size) -> Carry:
            return run_slab(slab, size, carry)

        carry = lax.fori_loop(plan.begin[rank], plan.begin[rank + 1], body, carry)
    return carry


def _for_each_tile(
    plan: SlabPlan, slab: jax.Array, run_tile: Callable[[jax.Array, jax.Array, Carry], Carry], carry: Carry
) -> Carry:
    """Calls `run_tile(first, valid, carry)` on all rows of a slab: the tile's first row, and which are its own."""
    sizes = tile_rows(plan.row.size)
    first, end = plan.first[slab], plan.first[slab] + plan.rows[slab]
    for size in sizes:
        spare = size - 1 if size == sizes[-1] else size // SPARE
        tiles = (jnp.maximum(end - first, 0) + spare) // size

        def body(tile: jax.Array, carry: Carry, first: jax.Array = first, size: int = size) -> Carry:
            start = first + tile * size
            return run_tile(start, start + jnp.arange(size, dtype=jnp.int32) < end, carry)

        carry = lax.fori_loop(0, tiles, body, carry)
        first = first + tiles * size
    return carry


def _weights(blocks: Blocks, first: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A slab's gate [D, W], up [D, W] and down [W, D], copied once for all its tiles."""
    gate, up, down = (lax.dynamic_slice_in_dim(w, first, size) for w in blocks)
    merged = rearrange(gate, "n d b -> d (n b)"), rearrange(up, "n d b -> d (n b)"), rearrange(down, "n b d -> (n b) d")
    return lax.optimization_barrier(merged)


def _add_to_blocks(
    total: Blocks, first: jax.Array, size: int, gate: jax.Array, up: jax.Array, down: jax.Array
) -> Blocks:
    """Adds a slab's gradients to those of the pool."""
    slab = Blocks(
        rearrange(gate, "d (n b) -> n d b", n=size),
        rearrange(up, "d (n b) -> n d b", n=size),
        rearrange(down, "(n b) d -> n b d", n=size),
    )
    return Blocks(*(_add_rows(w, first, term) for w, term in zip(total, slab, strict=True)))


def _cut(values: jax.Array, first: jax.Array, valid: jax.Array) -> jax.Array:
    return lax.dynamic_slice_in_dim(values, first, valid.shape[0])


def _add_rows(total: jax.Array, first: jax.Array, term: jax.Array) -> jax.Array:
    old = lax.dynamic_slice_in_dim(total, first, term.shape[0])
    return lax.dynamic_update_slice_in_dim(total, old + term, first, 0)


def _rows_forward(h_TD: jax.Array, blocks: Blocks, plan: SlabPlan, activation: str) -> jax.Array:
    """The unweighted output of every sorted row."""
    act, choices = ACTIVATIONS[activation], plan.row.shape[1]

    def run_slab(slab: jax.Array, size: int, y_MD: jax.Array) -> jax.Array:
        gate, up, down = _weights(blocks, plan.block[slab], size)

        def run_tile(first: jax.Array, valid: jax.Array, y_MD: jax.Array) -> jax.Array:
            x = h_TD[_cut(plan.order, first, valid) // choices]
            out = (act(x @ gate) * (x @ up)) @ down
            return _add_rows(y_MD, first, jnp.where(valid[:, None], out, 0))

        return _for_each_tile(plan, slab, run_tile, y_MD)

    rows = jnp.zeros((plan.order.shape[0], h_TD.shape[1]), h_TD.dtype)
    return _for_each_slab(plan, blocks, run_slab, rows)


def _rows_backward(
    h_TD: jax.Array, dy_TD: jax.Array, weight_TK: jax.Array, blocks: Blocks, plan: SlabPlan, activation: str
) -> tuple[jax.Array, jax.Array, Blocks]:
    """Gradients of every sorted row, of its routing weight and of the blocks, hidden activations recomputed."""
    act, choices = ACTIVATIONS[activation], plan.row.shape[1]
    weight_M = weight_TK.reshape(-1)[plan.order]

    def run_slab(slab: jax.Array, size: int, totals: tuple) -> tuple:
        gate, up, down = _weights(blocks, plan.block[slab], size)

        def run_tile(first: jax.Array, valid: jax.Array, totals: tuple) -> tuple:
            dx_MD, dweight_M, dgate, dup, ddown = totals
            token = _cut(plan.order, first, valid) // choices
            x, dy = h_TD[token], dy_TD[token]
            weight = jnp.where(valid, _cut(weight_M, first, valid), 0)[:, None].astype(x.dtype)
            (s, act_vjp), u = jax.vjp(act, x @ gate), x @ up
            hidden, dhidden = s * u, dy @ down.T
            dweight = jnp.where(valid, (hidden * dhidden).sum(-1), 0).astype(weight_M.dtype)
            dhidden = dhidden * weight
            (da,), du = act_vjp(dhidden * u), dhidden * s
            return (
                _add_rows(dx_MD, first, da @ gate.T + du @ up.T),
                _add_rows(dweight_M, first, dweight),
                dgate + x.T @ da,
                dup + x.T @ du,
                ddown + (hidden * weight).T @ dy,
            )

        dx_MD, dweight_M, dblocks = totals
        own = tuple(jnp.zeros_like(w) for w in (gate, up, down))
        dx_MD, dweight_M, *terms = _for_each_tile(plan, slab, run_tile, (dx_MD, dweight_M, *own))
        return dx_MD, dweight_M, _add_to_blocks(dblocks, plan.block[slab], size, *terms)

    rows = jnp.zeros((plan.order.shape[0], h_TD.shape[1]), h_TD.dtype)
    totals = (rows, jnp.zeros_like(weight_M), jax.tree.map(jnp.zeros_like, blocks))
    return _for_each_slab(plan, blocks, run_slab, totals)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _run(h_TD: jax.Array, blocks: Blocks, weight_TK: jax.Array, plan: SlabPlan, activation: str) -> jax.Array:
    rows_MD = _rows_forward(h_TD, blocks, plan, activation)
    choices = (rows_MD[plan.row[:, k]] * weight_TK[:, k, None] for k in range(plan.row.shape[1]))
    return functools.reduce(jnp.add, choices).astype(h_TD.dtype)


def _run_forward(h_TD, blocks, weight_TK, plan, activation):  # type: ignore[no-untyped-def]
    return _run(h_TD, blocks, weight_TK, plan, activation), (h_TD, blocks, weight_TK, plan)


def _run_backward(activation, residuals, dy_TD):  # type: ignore[no-untyped-def]
    h_TD, blocks, weight_TK, plan = residuals
    dx_MD, dweight_M, dblocks = _rows_backward(h_TD, dy_TD, weight_TK, blocks, plan, activation)
    choices = (dx_MD[plan.row[:, k]] for k in range(plan.row.shape[1]))
    return functools.reduce(jnp.add, choices), dblocks, dweight_M[plan.row], None


_run.defvjp(_run_forward, _run_backward)


def expert_ffn(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str) -> jax.Array:
    """Runs exactly the routed blocks."""
    plan = jax.tree.map(lax.stop_gradient, make_plan(pool, routing))
    return _run(h_TD, pool.blocks, routing.weight, plan, activation)
