"""The one function that does the routed layer's work, over interchangeable backends."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import jax
import jax.numpy as jnp

from moe_lab.errors import LabError, did_you_mean
from moe_lab.nn.backends import reference, worklist
from moe_lab.nn.pool import Pool, Routing

Backend = Callable[[jax.Array, Pool, Routing, str], jax.Array]
BACKENDS: MappingProxyType[str, Backend] = MappingProxyType(
    {"reference": reference.expert_ffn, "worklist": worklist.expert_ffn}
)


def choose_backend(backend: str = "auto") -> str:
    """The backend that `auto` stands for: `worklist`, which is exact and proportional on every platform."""
    if backend == "auto":
        return "worklist"
    if backend not in BACKENDS:
        raise LabError(f'backend "{backend}" does not exist.{did_you_mean(backend, ["auto", *BACKENDS])}')
    return backend


def expert_ffn(
    h_TD: jax.Array, pool: Pool, routing: Routing, *, activation: str = "silu", backend: str = "auto"
) -> jax.Array:
    """Sums the routed blocks of every token.

    `y_t = sum_k weight[t,k] * sum_{j < width[t,k]} block_{start[expert[t,k]] + j}(h_t)` with
    `block_n(h) = (act(h @ gate[n]) * (h @ up[n])) @ down[n]`.

    Args:
        h_TD: tokens, already normalised.
        pool: the layer's blocks.
        routing: `[T, K]` arrays; a width beyond the module's own runs all of it, width 0 runs nothing.
        activation: `silu` or `gelu`.
        backend: `auto`, `reference` (dense, the oracle) or `worklist` (work proportional to the routed blocks).

    Returns:
        `[T, D]` in the dtype of `h_TD`, differentiable in the tokens, the blocks and the routing weights.
    """
    assert routing.expert.ndim == 2, "flatten the routing to [T, K] first"
    blocks = jax.tree.map(lambda w: w.astype(h_TD.dtype), pool.blocks)
    run = BACKENDS[choose_backend(backend)]
    return run(h_TD, Pool(blocks, pool.start, pool.count), routing, activation)


def routed_blocks(pool: Pool, routing: Routing) -> jax.Array:
    """Blocks that each token runs: int32[T]. The honest cost of a routing, before any rounding by a backend."""
    return jnp.minimum(routing.width, pool.count[routing.expert]).sum(-1)
