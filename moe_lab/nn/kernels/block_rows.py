"""The routed layer as grouped matmuls over block rows: one row for each (assignment, block) pair, sorted by block.

For accelerators, where a grouped matmul kernel is fast and shapes must be static. A budget says how many block rows
there is room for. With a budget everything runs in one pass and the hidden activations are kept for the backward
pass, so gradients cost twice a forward pass; what does not fit is left out, and `rows_beyond_budget` counts it.
Without a budget the rows go through in chunks, as many as it takes: nothing is dropped, and hidden activations are
recomputed.

Shape letters: T tokens, K choices, M = T * K assignments, N blocks, R block rows, D model width, U units of a block.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from moe_lab.nn.activations import ACTIVATIONS
from moe_lab.nn.kernels.sorting import Sorted, block_users, sort_assignments
from moe_lab.nn.pool import Blocks, Pool, Routing

ROW_UNIT = 512
"""Block rows come in multiples of this, as the kernels' row tiles do."""


class GroupedMatmul(Protocol):
    """The two kernels everything is made of. Rows beyond the sum of sizes may come out as anything."""

    def rows(self, x_RI: jax.Array, w_NIO: jax.Array, size_N: jax.Array, *, transposed: bool) -> jax.Array:
        """Each group's rows times its matrix, accumulated in float32: [R, O]. `transposed`: matrices are [N, O, I]."""
        ...

    def weights(self, x_RI: jax.Array, y_RO: jax.Array, size_N: jax.Array) -> jax.Array:
        """Each group's `x.T @ y`, accumulated in float32: [N, I, O]."""
        ...


Operands = tuple[jax.Array, Blocks, jax.Array]
"""Tokens [T, D], blocks, routing weights [M]: what gradients are taken in."""


class RowPlan(NamedTuple):
    """The list of all block rows, as far as closed forms need it. All integer."""

    ordered: Sorted
    first: jax.Array  # int32[N] first sorted row of each block
    end: jax.Array  # int32[N] block rows up to and with each block
    rows: jax.Array  # int32[N] block rows of each block


class Chunk(NamedTuple):
    """The block rows of one pass."""

    assignment: jax.Array  # int32[R]
    used: jax.Array  # bool[R, 1]
    size: jax.Array  # int32[N] rows of each block in this pass


def make_plan(pool: Pool, routing: Routing) -> RowPlan:
    """Sorts the assignments and counts the rows of each block."""
    ordered = sort_assignments(pool, routing)
    first_N, rows_N = block_users(pool, ordered)
    return RowPlan(ordered, first_N, jnp.cumsum(rows_N), rows_N)


def rows_beyond_budget(pool: Pool, routing: Routing, budget: int) -> jax.Array:
    """Block rows that do not fit into a budget: int32."""
    return jnp.maximum(make_plan(pool, routing).end[-1] - whole_rows(budget), 0)


def whole_rows(rows: int) -> int:
    """Block rows rounded up to what the kernels take."""
    return -(-max(rows, 1) // ROW_UNIT) * ROW_UNIT


def _chunk(plan: RowPlan, start: jax.Array | int, rows: int) -> Chunk:
    place_R = start + jnp.arange(rows, dtype=jnp.int32)
    block_R = jnp.minimum(jnp.searchsorted(plan.end, place_R, side="right"), plan.end.shape[0] - 1)
    sorted_R = plan.first[block_R] + place_R - (plan.end - plan.rows)[block_R]
    used_R = place_R < plan.end[-1]
    assignment_R = plan.ordered.order[jnp.where(used_R, sorted_R, 0)]
    size_N = jnp.diff(jnp.clip(plan.end - start, 0, rows), prepend=0)
    return Chunk(assignment_R, used_R[:, None], size_N.astype(jnp.int32))


def _tokens(operands: Operands, chunk: Chunk) -> jax.Array:
    """The token of each block row."""
    h_TD, _, weight_M = operands
    return chunk.assignment // (weight_M.shape[0] // h_TD.shape[0])


def _up(kernel: GroupedMatmul, x_RD: jax.Array, blocks: Blocks, chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """Pre-activations of gate and up: [R, U] each, zero where a row is unused."""
    a, u = (kernel.rows(x_RD, w, chunk.size, transposed=False).astype(x_RD.dtype) for w in (blocks.gate, blocks.up))
    return jnp.where(chunk.used, a, 0), jnp.where(chunk.used, u, 0)


def _forward(
    kernel: GroupedMatmul, activation: str, operands: Operands, chunk: Chunk
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """This pass's share of the output, in float32, and its pre-activations."""
    h_TD, blocks, weight_M = operands
    token_R = _tokens(operands, chunk)
    a, u = _up(kernel, h_TD[token_R], blocks, chunk)
    out = kernel.rows(ACTIVATIONS[activation](a) * u, blocks.down, chunk.size, transposed=False)
    out = jnp.where(chunk.used, out * weight_M[chunk.assignment][:, None], 0)
    return jnp.zeros(h_TD.shape, jnp.float32).at[token_R].add(out), (a, u)


def _backward(
    kernel: GroupedMatmul,
    activation: str,
    operands: Operands,
    chunk: Chunk,
    pre_activations: tuple[jax.Array, jax.Array],
    dy_TD: jax.Array,
) -> tuple[jax.Array, Blocks, jax.Array]:
    """This pass's share of all gradients, in float32."""
    h_TD, blocks, weight_M = operands
    token_R = _tokens(operands, chunk)
    a, u = pre_activations
    x, dy = h_TD[token_R], dy_TD[token_R]
    weight = jnp.where(chunk.used, weight_M[chunk.assignment][:, None], 0)
    s, act_vjp = jax.vjp(ACTIVATIONS[activation], a)
    hidden = s * u
    dhidden = jnp.where(chunk.used, kernel.rows(dy, blocks.down, chunk.size, transposed=True), 0)
    dweight_R = (hidden * dhidden).sum(-1)
    dhidden = (dhidden * weight).astype(x.dtype)
    (da,), du = act_vjp(dhidden * u), dhidden * s
    dx = sum(kernel.rows(d, w, chunk.size, transposed=True) for d, w in ((da, blocks.gate), (du, blocks.up)))
    dblocks = Blocks(
        kernel.weights(x, da, chunk.size),
        kernel.weights(x, du, chunk.size),
        kernel.weights((hidden * weight).astype(x.dtype), dy, chunk.size),
    )
    return (
        jnp.zeros(h_TD.shape, jnp.float32).at[token_R].add(jnp.where(chunk.used, dx, 0)),
        dblocks,
        jnp.zeros(weight_M.shape, jnp.float32).at[chunk.assignment].add(dweight_R),
    )


def _like(gradients: tuple, operands: tuple) -> tuple:
    return jax.tree.map(lambda g, v: g.astype(v.dtype), gradients, operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _one_pass(kernel, activation, rows, operands, plan):  # type: ignore[no-untyped-def]
    return _forward(kernel, activation, operands, _chunk(plan, 0, rows))[0]


def _one_pass_forward(kernel, activation, rows, operands, plan):  # type: ignore[no-untyped-def]
    chunk = _chunk(plan, 0, rows)
    y_TD, pre_activations = _forward(kernel, activation, operands, chunk)
    return y_TD, (operands, chunk, pre_activations)


def _one_pass_backward(kernel, activation, rows, residuals, dy_TD):  # type: ignore[no-untyped-def]
    operands, chunk, pre_activations = residuals
    dy_TD = dy_TD.astype(operands[0].dtype)
    return _like(_backward(kernel, activation, operands, chunk, pre_activations, dy_TD), operands), None


_one_pass.defvjp(_one_pass_forward, _one_pass_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _in_chunks(kernel, activation, rows, operands, plan):  # type: ignore[no-untyped-def]
    def add(index: jax.Array, y_TD: jax.Array) -> jax.Array:
        return y_TD + _forward(kernel, activation, operands, _chunk(plan, index * rows, rows))[0]

    return lax.fori_loop(0, -(-plan.end[-1] // rows), add, jnp.zeros(operands[0].shape, jnp.float32))


def _in_chunks_forward(kernel, activation, rows, operands, plan):  # type: ignore[no-untyped-def]
    return _in_chunks(kernel, activation, rows, operands, plan), (operands, plan)


def _in_chunks_backward(kernel, activation, rows, residuals, dy_TD):  # type: ignore[no-untyped-def]
    operands, plan = residuals
    dy_TD = dy_TD.astype(operands[0].dtype)

    def add(index: jax.Array, totals: tuple) -> tuple:
        chunk = _chunk(plan, index * rows, rows)
        pre_activations = _up(kernel, operands[0][_tokens(operands, chunk)], operands[1], chunk)
        return jax.tree.map(jnp.add, totals, _backward(kernel, activation, operands, chunk, pre_activations, dy_TD))

    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, jnp.float32), operands)
    return _like(lax.fori_loop(0, -(-plan.end[-1] // rows), add, zeros), operands), None


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)


def expert_ffn(
    kernel: GroupedMatmul, h_TD: jax.Array, pool: Pool, routing: Routing, activation: str, budget: int | None
) -> jax.Array:
    """Runs the routed blocks through a grouped matmul: all of them, or as many as the budget has room for."""
    plan = jax.tree.map(lax.stop_gradient, make_plan(pool, routing))
    operands = (h_TD, pool.blocks, routing.weight.reshape(-1))
    run, rows = (_in_chunks, 2 * routing.expert.size) if budget is None else (_one_pass, budget)
    return run(kernel, activation, whole_rows(rows), operands, plan).astype(h_TD.dtype)
