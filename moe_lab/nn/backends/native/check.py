"""Whether the kernel can be used here, and whether its numbers are right."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.nn.activations import ACTIVATIONS
from moe_lab.nn.backends.native import build, dense
from moe_lab.nn.backends.native.attention import attend, attend_cached
from moe_lab.nn.backends.native.layer import expert_ffn
from moe_lab.nn.cache import Cache, LayerCache, open_chunk, remember
from moe_lab.nn.kernels import reference
from moe_lab.nn.kernels.attention import Scoring, cached_attention, causal_attention
from moe_lab.nn.pool import PROJECTIONS, Blocks, Pool, Routing
from moe_lab.nn.rope import rotate


@functools.cache
def obstacle() -> str | None:
    """Why the kernel cannot be used on this machine, or None. A reason is said once: what takes its place is slower.

    The first call on a machine compiles for some seconds.
    """
    try:
        build.load_kernel(disagreement)
    except build.CannotBuildError as error:
        print(
            f"note: routed layers and attention run without the compiled kernel, slower: {error}",
            file=sys.stderr,
            flush=True,
        )
        return str(error)
    return None


def disagreement() -> str | None:
    """What is wrong with the kernel's numbers, or None."""
    return layer_disagreement() or attention_disagreement() or chunk_disagreement()


def layer_disagreement() -> str | None:
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


def attention_disagreement() -> str | None:
    """Compares outputs and gradients with the same through XLA: odd sizes, several documents, with cap and window."""
    rng = np.random.default_rng(0)
    rows, length, heads, groups, width, turned = 2, 61, 4, 2, 10, 6
    q, k, v, dy = (_normal(rng, rows, length, count, width) for count in (heads, groups, groups, heads))
    segments: Any = np.sort(rng.integers(0, 4, (rows, length)).astype(np.int32))[:, ::-1]
    angle = _normal(rng, rows, length, turned // 2)
    turns: Any = np.sin(angle), np.cos(angle)

    def through_xla(scoring: Scoring, q: Any, k: Any, v: Any) -> jax.Array:
        q, k, v = (t.swapaxes(1, 2) for t in (rotate(q, *turns), rotate(k, *turns), v))
        return causal_attention(q, k, v, segments, scoring).swapaxes(1, 2)

    def compiled(scoring: Scoring, q: Any, k: Any, v: Any) -> jax.Array:
        return attend(scoring, q, k, v, segments, turns)

    names = ("output", *(f"gradient of {name}" for name in ("queries", "keys", "values")))
    for scoring in (Scoring(0.3), Scoring(0.3, 2.0, 17)):
        both = []
        for run in (through_xla, compiled):

            def gradients(q: Any, k: Any, v: Any, run: Any = run, scoring: Scoring = scoring) -> tuple:
                y, pull_back = jax.vjp(lambda *heads: run(scoring, *heads), q, k, v)
                return y, *pull_back(dy)

            both.append(map(np.asarray, jax.jit(gradients).lower(q, k, v).compile()(q, k, v)))
        for name, expected, got in zip(names, *both, strict=True):
            error = float(np.abs(expected - got).max() / np.abs(expected).max())
            if not error < 1e-4:
                return f"attention's {name} is off by {error:.2g} of its largest number"
    return None


def chunk_disagreement() -> str | None:
    """Compares what reads a chunk behind a cache with the same through XLA: a turned ring, padding, odd sizes."""
    rng = np.random.default_rng(0)
    rows, length, heads, groups, width, slots = 3, 7, 6, 2, 10, 13
    q, k, v = (_normal(rng, rows, length, count, width) for count in (heads, groups, groups))
    layer = LayerCache(*(_normal(rng, rows + 2, groups, slots, width) for _ in range(2)))
    segments: Any = np.array([[1] * 7, [2, 2, 3, 3, 3, 0, 0], [1] + [0] * 6], np.int32)
    key_segments: Any = np.array([[1] * 40, [1] * 9 + [2] * 31, [1] * 40], np.int32)
    lengths: Any = np.array([30, 11, 0], np.int32)
    place: Any = np.array([3, 0, 4], np.int32)

    def through_xla(scoring: Scoring, q: Any, k: Any, v: Any, cache: Cache, segments: Any) -> tuple:
        chunk, (q_first, k_first, v_first) = open_chunk(cache, segments), (t.swapaxes(1, 2) for t in (q, k, v))
        out = cached_attention(q_first, k_first, v_first, cache.layers[0], chunk, scoring).swapaxes(1, 2)
        return out, remember(cache.layers[0], chunk, k, v)

    def compiled(scoring: Scoring, q: Any, k: Any, v: Any, cache: Cache, segments: Any) -> tuple:
        return attend_cached(scoring, q, k, v, cache.layers[0], open_chunk(cache, segments))

    for scoring in (Scoring(0.3), Scoring(0.3, 2.0, slots)):
        arguments = q, k, v, Cache((layer,), key_segments, lengths, place), segments
        both = [_compiled(partial(run, scoring), *arguments) for run in (through_xla, compiled)]
        (expected, kept), (got, own) = ((np.asarray(out)[segments != 0], after) for out, after in both)
        error = float(np.abs(expected - got).max() / np.abs(expected).max())
        if not error < 1e-4 or not all(map(np.array_equal, kept, own)):
            return f"attention behind a cache is off by {error:.2g} of its largest number, or writes its cache wrong"
    x, w, scale = _normal(rng, 5, 67), _normal(rng, 67, 91), _normal(rng, 67)
    narrow = w.astype(jnp.bfloat16)
    wide, root = narrow.astype(np.float32), np.sqrt(np.square(x).mean(-1, keepdims=True) + 0.1)
    turned = partial(dense.multiply, turned=True)
    cases: list[tuple[str, np.ndarray, Callable, tuple[Any, ...]]] = [
        ("a product", x @ w, dense.multiply, (x, w)),
        ("a product with rows", x @ w, turned, (x, np.ascontiguousarray(w.T))),
        ("a product with bfloat16", x @ wide, dense.multiply, (x, narrow)),
        ("a product with rows in bfloat16", x @ wide, turned, (x, np.ascontiguousarray(narrow.T))),
        ("a norm", x / root * scale, partial(dense.norm, eps=0.1), (x, scale)),
    ]
    for name, expected, call, inputs in cases:
        error = float(np.abs(expected - np.asarray(_compiled(call, *inputs))).max() / np.abs(expected).max())
        if not error < 1e-4:
            return f"{name} by token is off by {error:.2g} of its largest number"
    return None


def _compiled(run: Callable, *arguments: Any) -> Any:
    """Compiled apart from being called: whoever asks for a check may be in the middle of being traced."""
    return jax.jit(run).lower(*arguments).compile()(*arguments)


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
