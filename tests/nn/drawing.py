"""Random pools and routings for property tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet
from hypothesis import strategies as st

from moe_lab.nn.backend import Backend
from moe_lab.nn.backends import BACKENDS
from moe_lab.nn.expert_ffn import expert_ffn
from moe_lab.nn.layout import Layout
from moe_lab.nn.pool import Blocks, Pool, Routing, make_pool

D_MODEL, BLOCK = 12, 4
TOKENS = (40,)
"""One count that is more than a tile; what is drawn at random is the routing, because every new shape compiles."""


class InParts(Layout):
    """One device that is treated like one of several: all of a trunk goes through XLA."""

    @property
    def spreads(self) -> bool:
        return True


def random_blocks(rng: np.random.Generator, count: int, d_model: int = D_MODEL, block: int = BLOCK) -> Blocks:
    """Random weights of one module."""
    shapes = ((count, d_model, block), (count, d_model, block), (count, block, d_model))
    return Blocks(*(jnp.asarray(rng.normal(size=shape) * 0.3, jnp.float32) for shape in shapes))


def random_pool(rng: np.random.Generator, counts: Sequence[int]) -> Pool:
    """Modules of the given numbers of blocks."""
    return make_pool([random_blocks(rng, count) for count in counts])


def random_routing(rng: np.random.Generator, tokens: int, top_k: int, counts: Sequence[int]) -> Routing:
    """Any module, any width up to one too many, any weight, zero included."""
    shape = (tokens, top_k)
    weight = np.where(rng.random(shape) < 0.2, 0.0, rng.normal(size=shape))
    return Routing(
        jnp.asarray(rng.integers(0, len(counts), shape), jnp.int32),
        jnp.asarray(rng.integers(0, max(counts) + 2, shape), jnp.int32),
        jnp.asarray(weight, jnp.float32),
    )


def random_tokens(rng: np.random.Generator, tokens: int) -> jnp.ndarray:
    """Normalised inputs."""
    return jnp.asarray(rng.normal(size=(tokens, D_MODEL)), jnp.float32)


def _where_it_runs(backend: Backend) -> ParameterSet:
    obstacle = backend.obstacle(None)
    return pytest.param(backend.name, marks=pytest.mark.skipif(obstacle is not None, reason=str(obstacle)))


NATIVE = _where_it_runs(BACKENDS["native"])
EXACT = tuple(
    _where_it_runs(backend)
    for backend in BACKENDS.values()
    if backend.platform in (None, "cpu") and not backend.may_drop(None)
)
"""Backends that drop nothing unasked and run on any machine, the compiled one wherever there is a compiler."""
BESIDE_REFERENCE = tuple(backend for backend in EXACT if backend.values != ("reference",))

run_ffn = jax.jit(expert_ffn, static_argnames=("activation", "backend", "budget"))
"""Compiled once per shape and backend."""


@partial(jax.jit, static_argnames=("backend", "budget"))
def ffn_gradients(h: jax.Array, pool: Pool, routing: Routing, backend: str, budget: int | None = None) -> tuple:
    """Gradients of a bounded loss in tokens, blocks and routing weights."""

    def loss(h: jax.Array, blocks: Blocks, weight: jax.Array) -> jax.Array:
        y = expert_ffn(
            h, Pool(blocks, pool.start, pool.count), routing._replace(weight=weight), backend=backend, budget=budget
        )
        return jnp.sum(jnp.sin(y + 0.1 * h))

    return jax.grad(loss, argnums=(0, 1, 2))(h, pool.blocks, routing.weight)


seeds = st.integers(0, 2**32 - 1)
tokens = st.sampled_from(TOKENS)
choices_and_counts = st.sampled_from(((1, (5,)), (2, (1, 2, 4)), (2, (3, 2, 2)), (2, (4, 2, 1))))
"""Choices per token, and blocks per module. Every new shape compiles, so one module has one choice, and all pools of
three have the same: seven blocks, five without the second module, four where each is cut to half. What is drawn at
random is the routing."""
