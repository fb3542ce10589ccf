"""Whether the kernel can be used here, and whether its numbers are right."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.nn.activations import ACTIVATIONS
from moe_lab.nn.backends.native import build
from moe_lab.nn.backends.native.layer import expert_ffn
from moe_lab.nn.kernels import reference
from moe_lab.nn.pool import PROJECTIONS, Blocks, Pool, Routing


@functools.cache
def obstacle() -> str | None:
    """Why the kernel cannot be used on this machine, or None. A reason is said once: what takes its place is slower.

    The first call on a machine compiles for some seconds.
    """
    try:
        build.load_kernel(disagreement)
    except build.CannotBuildError as error:
        print(f"note: routed layers run without the compiled kernel, slower: {error}", file=sys.stderr, flush=True)
        return str(error)
    return None


def disagreement() -> str | None:
    """Compares outputs and gradients with the definition: odd sizes, a module not used, rows wider than the module."""
    rng = np.random.default_rng(0)
    tokens, d_model, block = 71, 20, 12
    count: Any = np.array([3, 1, 2], np.int32)
    start: Any = np.cumsum(count, dtype=np.int32) - count
    shapes = ((count.sum(), d_model, block), (count.sum(), d_model, block), (count.sum(), block, d_model))
    blocks: Any = Blocks(*(_normal(rng, *shape) for shape in shapes))
    expert: Any = rng.integers(0, 2, (tokens, 2)).astype(np.int32)
    width: Any = rng.integers(0, 5, (tokens, 2)).astype(np.int32)
    routing = Routing(expert, width, _normal(rng, tokens, 2))
    arguments = _normal(rng, tokens, d_model), Pool(blocks, start, count), routing
    for activation in ACTIVATIONS:
        expected, got = (_results(run, activation, *arguments) for run in (reference.expert_ffn, expert_ffn))
        for name, values in expected.items():
            error = float(np.abs(values - got[name]).max() / np.abs(values).max())
            if not error < 1e-4:
                return f"the {activation} layer's {name} is off by {error:.2g} of its largest number"
    return None


def _normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.normal(scale=0.5, size=shape).astype(np.float32)


def _results(
    run: Callable[[jax.Array, Pool, Routing, str], jax.Array],
    activation: str,
    h: np.ndarray,
    pool: Pool,
    routing: Routing,
) -> dict[str, np.ndarray]:
    def gradients(h_TD: jax.Array, pool: Pool, routing: Routing) -> tuple:
        def layer(h_TD: jax.Array, blocks: Blocks, weight_TK: jax.Array) -> jax.Array:
            return run(h_TD, Pool(blocks, pool.start, pool.count), routing._replace(weight=weight_TK), activation)

        y_TD, pull_back = jax.vjp(layer, h_TD, pool.blocks, routing.weight)
        dh_TD, dblocks, dweight_TK = pull_back(jnp.sin(3 * h_TD))
        return y_TD, dh_TD, *dblocks, dweight_TK

    # Compiled apart from being called: a layer may ask for this check in the middle of being traced itself.
    compiled = jax.jit(gradients).lower(h, pool, routing).compile()
    names = (
        "output",
        "gradient of the tokens",
        *(f"gradient of {name}" for name in PROJECTIONS),
        "gradient of weights",
    )
    return dict(zip(names, map(np.asarray, compiled(h, pool, routing)), strict=True))
