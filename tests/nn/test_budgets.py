"""Backends with a budget leave out exactly what they say, and compute the rest as if it had been routed elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab.nn.backends import BACKENDS
from moe_lab.nn.kernels.block_rows import whole_rows
from moe_lab.nn.kernels.grouped_matmul import Megablox, Plain, disagreement, probe_gpu
from moe_lab.nn.pool import Pool, Routing
from tests.nn.drawing import random_pool, random_routing, random_tokens, run_ffn

pytestmark = pytest.mark.slow

COUNTS = [3, 1, 2]


def dense_blocks(h: jnp.ndarray, pool: Pool) -> np.ndarray:
    """The output of every block on every token: [N, T, D]."""
    gate, up, down = (np.asarray(w, np.float64) for w in pool.blocks)
    a, u = (np.einsum("td,ndb->ntb", h, w) for w in (gate, up))
    return np.einsum("ntb,nbd->ntd", a / (1 + np.exp(-a)) * u, down)


def users(pool: Pool, routing: Routing) -> list[list[tuple[int, int]]]:
    """(token, choice) of the rows of every block, widest first, then in order."""
    expert, width = np.asarray(routing.expert), np.minimum(routing.width, pool.count[routing.expert])
    found: list[list[tuple[int, int]]] = [[] for _ in range(pool.blocks.num_blocks)]
    for t, k in sorted(np.ndindex(expert.shape), key=lambda at: -int(width[at])):
        for j in range(int(width[t, k])):
            found[int(pool.start[expert[t, k]]) + j].append((t, k))
    return found


def expected(h: jnp.ndarray, pool: Pool, routing: Routing, kept: list[list[tuple[int, int]]]) -> np.ndarray:
    out, blocks = np.zeros(h.shape), dense_blocks(h, pool)
    for n, rows in enumerate(kept):
        for t, k in rows:
            out[t] += float(routing.weight[t, k]) * blocks[n, t]
    return out


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_capacity_keeps_the_first_rows_of_every_block(rows: int) -> None:
    rng = np.random.default_rng(rows)
    pool, h, routing = random_pool(rng, COUNTS), random_tokens(rng, 40), random_routing(rng, 40, 2, COUNTS)
    asked = users(pool, routing)
    kept = [block[:rows] for block in asked]
    got = run_ffn(h, pool, routing, backend="capacity", budget=rows * sum(COUNTS))
    np.testing.assert_allclose(got, expected(h, pool, routing, kept), rtol=1e-5, atol=1e-5)
    lost = sum(map(len, asked)) - sum(map(len, kept))
    assert BACKENDS["capacity"].rows_beyond_budget(pool, routing, rows * sum(COUNTS)) == lost > 0


def test_a_grouped_matmul_keeps_the_first_rows_of_the_pool() -> None:
    rng = np.random.default_rng(0)
    pool, h = random_pool(rng, COUNTS), random_tokens(rng, 300)
    routing = random_routing(rng, 300, 2, COUNTS)
    asked, room = users(pool, routing), whole_rows(1)
    kept, left = [], room
    for block in asked:
        kept.append(block[:left])
        left -= len(kept[-1])
    got = run_ffn(h, pool, routing, backend="megablox-interpreted", budget=1)
    np.testing.assert_allclose(got, expected(h, pool, routing, kept), rtol=1e-5, atol=1e-5)
    lost = sum(map(len, asked)) - room
    backend = BACKENDS["megablox-interpreted"]
    assert backend.rows_beyond_budget(pool, routing, 1) == lost > 0
    assert backend.rows_beyond_budget(pool, routing, sum(map(len, asked))) == 0


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_without_a_budget_only_capacity_leaves_anything_out(backend: str) -> None:
    rng = np.random.default_rng(1)
    pool = random_pool(rng, COUNTS)
    hot = Routing(jnp.zeros((40, 1), jnp.int32), jnp.full((40, 1), 3), jnp.ones((40, 1)))
    expected = 69 if backend == "capacity" else 0  # 3 blocks, 17 of 40 rows each
    assert int(BACKENDS[backend].rows_beyond_budget(pool, hot)) == expected


def test_the_probe_accepts_a_right_kernel_and_names_what_a_wrong_one_gets_wrong() -> None:
    class Wrong(Plain):
        def weights(self, x_RI, y_RO, size_N):  # type: ignore[no-untyped-def]
            return 2 * super().weights(x_RI, y_RO, size_N)

    assert disagreement(Plain()) is None
    assert disagreement(Megablox(interpret=True)) is None
    assert "weights differ" in str(disagreement(Wrong()))


def test_a_kernel_can_be_compared_while_a_program_is_traced() -> None:
    verdicts = []

    @jax.jit
    def layer(h: jax.Array) -> jax.Array:
        verdicts.append(disagreement(Plain()))
        return h

    layer(jnp.ones(3))
    assert verdicts == [None]


def test_the_probe_says_why_there_is_no_gpu_kernel() -> None:
    assert "not a GPU" in str(probe_gpu())
