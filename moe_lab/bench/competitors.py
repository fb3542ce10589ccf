"""Ways to compute the same routed layer in JAX: our backends, and what others do.

A competitor gets the case once, builds weights in the layout it likes best, and returns a function of
(tokens, weights, routing) that is timed and differentiated as it stands; sorting and dispatch are part of it.

Shape letters: T tokens, K choices, M = T * K, E modules, N blocks, D model width, F width, L places of a module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moe_lab.bench.cases import Case
from moe_lab.nn.expert_ffn import expert_ffn, rank_backends
from moe_lab.nn.kernels.capacity import CAPACITY_FACTOR
from moe_lab.nn.pool import Blocks, Pool, Routing


class Layer(NamedTuple):
    """A competitor's weights, and its forward pass `run(h_TD, weights, routing) -> y_TD`."""

    weights: Any
    run: Callable[[jax.Array, Any, Routing], jax.Array]


Competitor = Callable[[Case, Blocks], Layer]


def draw_blocks(case: Case) -> Blocks:
    """Random weights of all modules of the case, as blocks."""
    keys, n = jax.random.split(jax.random.key(case.seed), 3), sum(case.counts)
    scale = case.d_model**-0.5
    gate, up = (jax.random.normal(key, (n, case.d_model, case.block)) * scale for key in keys[:2])
    return Blocks(gate, up, jax.random.normal(keys[2], (n, case.block, case.d_model)) * scale)


def draw_routing(case: Case) -> Routing:
    """The case's routing as arrays."""
    return Routing(*map(jnp.asarray, case.route()))


def draw_tokens(case: Case) -> jax.Array:
    """Normalised tokens."""
    return jax.random.normal(jax.random.key(case.seed + 1), (case.tokens, case.d_model))


def ours(backend: str) -> Competitor:
    """A backend of `expert_ffn` on the true widths."""

    def build(case: Case, blocks: Blocks) -> Layer:
        return _pooled(case, blocks, case.counts, backend)

    return build


def padded_grouped(case: Case, blocks: Blocks) -> Layer:
    """Every module padded to the widest, then our grouped kernel through XLA: what one width per layer costs in JAX."""
    return _pooled(case, _padded(case, blocks), (case.widest,) * len(case.counts), "worklist")


def _pooled(case: Case, blocks: Blocks, counts: tuple[int, ...], backend: str) -> Layer:
    count = np.array(counts, np.int32)
    start = jnp.asarray(np.cumsum(count) - count, jnp.int32)
    own = jnp.asarray(case.counts)

    def run(h_TD: jax.Array, weights: Blocks, routing: Routing) -> jax.Array:
        if counts != case.counts:  # padding makes a narrow module as dear as the widest
            whole = routing.width == own[routing.expert]
            routing = routing._replace(width=jnp.where(whole, case.widest, routing.width))
        return expert_ffn(h_TD, Pool(weights, start, jnp.asarray(count)), routing, backend=backend)

    return Layer(blocks, run)


def _padded(case: Case, blocks: Blocks) -> Blocks:
    """Blocks with every module filled up with zero blocks to the widest."""
    first = np.cumsum(case.counts) - case.counts
    parts = []
    for start, count in zip(first, case.counts, strict=True):
        module = jax.tree.map(lambda w, s=start, c=count: w[s : s + c], blocks)
        parts.append(jax.tree.map(lambda w, c=count: jnp.pad(w, ((0, case.widest - c), (0, 0), (0, 0))), module))
    return jax.tree.map(lambda *ws: jnp.concatenate(ws), *parts)


def stacked(case: Case, blocks: Blocks) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The layout of everyone else: gate, up [E, D, F] and down [E, F, D], all modules as wide as the widest."""
    gate, up, down = _padded(case, blocks)
    e, n, d, b = len(case.counts), case.widest, case.d_model, case.block
    gate, up = (w.reshape(e, n, d, b).swapaxes(1, 2).reshape(e, d, n * b) for w in (gate, up))
    return gate, up, down.reshape(e, n * b, d)


def dense_masked(case: Case, blocks: Blocks) -> Layer:
    """All modules on all tokens, then a mask: MaxText's `dense_matmul` with capacity factor -1."""
    unit_N = np.concatenate([np.arange(count) for count in case.counts])
    owner_N = np.repeat(np.arange(len(case.counts)), case.counts)

    def run(h_TD: jax.Array, weights: Any, routing: Routing) -> jax.Array:
        gate, up, down = weights
        used_TKN = (routing.expert[..., None] == owner_N) & (routing.width[..., None] > unit_N)
        weight_TN = jnp.where(used_TKN, routing.weight[..., None], 0).sum(1)
        hidden_TU = jax.nn.silu(h_TD @ gate) * (h_TD @ up)
        return (hidden_TU * jnp.repeat(weight_TN, case.block, axis=1)) @ down

    n, d, b = blocks.gate.shape
    gate, up = (w.swapaxes(0, 1).reshape(d, n * b) for w in (blocks.gate, blocks.up))
    return Layer((gate, up, blocks.down.reshape(n * b, d)), run)


def ragged_dot(case: Case, blocks: Blocks) -> Layer:
    """Padded to the widest, sorted by module, `jax.lax.ragged_dot`: MaxText's `sparse_matmul` without Pallas."""
    unit_F = np.repeat(np.arange(case.widest), case.block)

    def run(h_TD: jax.Array, weights: Any, routing: Routing) -> jax.Array:
        gate, up, down = weights
        expert_M = routing.expert.reshape(-1)
        order_M = jnp.argsort(expert_M)
        size_E = jnp.bincount(expert_M, length=len(case.counts)).astype(jnp.int32)
        rows_MD = h_TD[order_M // case.top_k]
        hidden_MF = jax.nn.silu(lax.ragged_dot(rows_MD, gate, size_E)) * lax.ragged_dot(rows_MD, up, size_E)
        hidden_MF = jnp.where(routing.width.reshape(-1)[order_M][:, None] > unit_F, hidden_MF, 0)
        out_MD = lax.ragged_dot(hidden_MF, down, size_E) * routing.weight.reshape(-1)[order_M][:, None]
        return jnp.zeros_like(h_TD).at[order_M // case.top_k].add(out_MD)

    return Layer(stacked(case, blocks), run)


def capacity_einsum(case: Case, blocks: Blocks) -> Layer:
    """MaxText's and V-MoE's dense dispatch: a one-hot [T, E, L] mask, einsum in, einsum out; overflow is dropped."""
    modules = len(case.counts)
    capacity = math.ceil(case.tokens * case.top_k / modules * CAPACITY_FACTOR)
    unit_F = np.repeat(np.arange(case.widest), case.block)

    def run(h_TD: jax.Array, weights: Any, routing: Routing) -> jax.Array:
        gate, up, down = weights
        module_TKE = jax.nn.one_hot(routing.expert, modules)
        place_TKE = jnp.cumsum(module_TKE.reshape(-1, modules), axis=0).reshape(module_TKE.shape) - 1
        place_TK = (place_TKE * module_TKE).sum(-1).astype(jnp.int32)
        place_TKL = jax.nn.one_hot(place_TK, capacity)  # beyond the capacity: all zeros, the token is dropped
        dispatch_TEL = jnp.einsum("tke,tkl->tel", module_TKE, place_TKL)
        combine_TEL = jnp.einsum("tke,tkl,tk->tel", module_TKE, place_TKL, routing.weight)
        width_EL = jnp.einsum("tke,tkl,tk->el", module_TKE, place_TKL, routing.width.astype(jnp.float32))
        rows_ELD = jnp.einsum("td,tel->eld", h_TD, dispatch_TEL)
        hidden_ELF = jax.nn.silu(jnp.einsum("eld,edf->elf", rows_ELD, gate))
        hidden_ELF = hidden_ELF * jnp.einsum("eld,edf->elf", rows_ELD, up)
        hidden_ELF = jnp.where(width_EL[..., None] > unit_F, hidden_ELF, 0)
        return jnp.einsum("eld,tel->td", jnp.einsum("elf,efd->eld", hidden_ELF, down), combine_TEL)

    return Layer(stacked(case, blocks), run)


COMPETITORS: dict[str, Competitor] = {
    **{backend.name: ours(backend.name) for _, backend in rank_backends("cpu")},
    "capacity": ours("capacity"),
    "padded grouped": padded_grouped,
    "capacity einsum": capacity_einsum,
    "dense masked": dense_masked,
    "ragged_dot": ragged_dot,
}
"""By name, in the order of the table: first what `auto` chooses from on a CPU."""
