"""The compiled kernel as a differentiable function: what it gets, and how much memory it may use.

All arrays that it works in are results of the call, so XLA allots them and its memory analysis counts them. The
sizes change with shapes only. No number that is computed depends on them, on the number of threads or on other tokens.

Shape letters: T tokens, K choices, M = T * K assignments, E modules, N blocks, D model width, U units of a block.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moe_lab.nn.activations import ACTIVATIONS
from moe_lab.nn.backends.native.build import panel_tokens
from moe_lab.nn.kernels.sorting import block_users, sort_assignments
from moe_lab.nn.pool import Blocks, Pool, Routing

TILE_FLOATS = 192 * 1024
"""Tokens of a tile times D: with its output it stays in a core's second-level cache."""
TILE_PANELS = 4
TILES_PER_THREAD = 4
"""So many tiles at least, where there are tokens enough: threads should end at about the same time."""
SEGMENT_UNITS = 1024
"""Hidden units that the backward pass takes of a module at once, if it has more."""
CHUNK_TILES = 3
"""Of the backward pass; more where there are more threads, for each should find one."""
CHUNK_ELEMENTS = 1 << 21
"""Most hidden activations of a chunk, rows times units; the backward pass has six arrays of them."""


class SortedRows(NamedTuple):
    """Who runs what; all integer, in the order in which the kernel takes it."""

    order: jax.Array  # int32[M] assignment of each sorted row
    row: jax.Array  # int32[T, K] sorted row of each assignment
    first: jax.Array  # int32[N] first sorted row of each block's users
    rows: jax.Array  # int32[N] how many they are
    start: jax.Array  # int32[E] first block of each module
    blocks: jax.Array  # int32[E] of each module


class Sizes(NamedTuple):
    """Static sizes of the kernel's tiles and arrays."""

    tile_rows: int
    slots: int
    segment: int
    max_panels: int
    max_elements: int
    kept: int


@jax.jit
def make_plan(pool: Pool, routing: Routing) -> SortedRows:
    """Sorts the assignments and finds the users of every block: one program where a layer is run by itself."""
    ordered = sort_assignments(pool, routing)
    first_N, rows_N = block_users(pool, ordered)
    return SortedRows(
        ordered.order, ordered.rows().reshape(routing.expert.shape), first_N, rows_N, pool.start, pool.count
    )


def make_sizes(assignments: int, modules: int, blocks: Blocks) -> Sizes:
    """Kept products have room for the average module's width at every assignment; beyond it they are recomputed."""
    panel, threads = panel_tokens(), os.cpu_count() or 1
    num_blocks, d_model, block = blocks.gate.shape
    share = -(-assignments // (panel * threads * TILES_PER_THREAD))
    panels = max(1, min(TILE_PANELS, TILE_FLOATS // (d_model * panel), share))
    tile_rows = panels * panel
    segment = max(1, SEGMENT_UNITS // block)
    all_panels = -(-assignments // panel) + num_blocks
    max_panels = max(panels, min(max(CHUNK_TILES, threads) * panels, all_panels))
    tile_elements = tile_rows * min(segment, num_blocks) * block
    return Sizes(
        tile_rows=tile_rows,
        slots=min(threads, -(-assignments // tile_rows) + modules),
        segment=segment,
        max_panels=max_panels,
        max_elements=max(tile_elements, min(CHUNK_ELEMENTS, max_panels * panel * min(segment, num_blocks) * block)),
        kept=(assignments + modules * panel) * -(-num_blocks // modules) * block,
    )


def _forward(
    h_TD: jax.Array, blocks: Blocks, weight_TK: jax.Array, plan: SortedRows, activation: str, keep: bool
) -> tuple[jax.Array, jax.Array]:
    """The output, and what the backward pass can use of the work."""
    d_model, block = h_TD.shape[1], blocks.gate.shape[2]
    sizes = make_sizes(weight_TK.size, plan.start.shape[0], blocks)
    results = _floats(
        h_TD.shape,
        (2, sizes.kept if keep else 0),
        (weight_TK.size, d_model),
        (sizes.slots, sizes.tile_rows * (2 * d_model + 3 * block)),
    )
    y_TD, kept, *_ = jax.ffi.ffi_call("moe_lab_forward", results)(
        h_TD, *blocks, weight_TK, *plan, **_int32(activation=_number(activation), tile_rows=sizes.tile_rows)
    )
    return y_TD, kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _run(h_TD: jax.Array, blocks: Blocks, weight_TK: jax.Array, plan: SortedRows, activation: str) -> jax.Array:
    return _forward(h_TD, blocks, weight_TK, plan, activation, keep=False)[0]


def _run_forward(h_TD, blocks, weight_TK, plan, activation):  # type: ignore[no-untyped-def]
    y_TD, kept = _forward(h_TD, blocks, weight_TK, plan, activation, keep=True)
    return y_TD, (h_TD, blocks, weight_TK, plan, kept)


def _run_backward(activation, residuals, dy_TD):  # type: ignore[no-untyped-def]
    h_TD, blocks, weight_TK, plan, kept = residuals
    d_model, block, panel = h_TD.shape[1], blocks.gate.shape[2], panel_tokens()
    sizes = make_sizes(weight_TK.size, plan.start.shape[0], blocks)
    chunk_rows = sizes.max_panels * panel
    results = _floats(
        h_TD.shape,
        *(w.shape for w in blocks),
        weight_TK.shape,
        (weight_TK.size, d_model),
        (sizes.slots, sizes.tile_rows * (2 * d_model + 3 * block + 2)),
        (2, chunk_rows * (d_model + -(-d_model // panel) * panel) + 3 * (sizes.max_elements + panel)),
    )
    limits = sizes._asdict()
    del limits["slots"], limits["kept"]
    dh_TD, dgate, dup, ddown, dweight_TK, *_ = jax.ffi.ffi_call("moe_lab_backward", results)(
        h_TD, *blocks, weight_TK, *plan, dy_TD, kept, **_int32(activation=_number(activation), **limits)
    )
    return dh_TD, Blocks(dgate, dup, ddown), dweight_TK, None


_run.defvjp(_run_forward, _run_backward)


def _number(activation: str) -> int:
    """Its value of `enum Activation` in activations.h."""
    return list(ACTIVATIONS).index(activation)


def _floats(*shapes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def _int32(**values: int) -> dict[str, np.int32]:
    return {name: np.int32(value) for name, value in values.items()}


def expert_ffn(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str) -> jax.Array:
    """Runs exactly the routed blocks, in float32."""
    plan = jax.tree.map(lax.stop_gradient, make_plan(pool, routing))
    blocks = jax.tree.map(_float32, pool.blocks)
    y_TD = _run(_float32(h_TD), blocks, _float32(routing.weight), plan, activation)
    return y_TD.astype(h_TD.dtype)


def _float32(values: jax.Array) -> jax.Array:
    return values.astype(jnp.float32)
