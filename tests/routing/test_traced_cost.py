"""Matrix products are counted wherever JAX puts them: plain, batched, compiled, in loops and in branches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from moe_lab.routing.traced_cost import traced_multiply_adds

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))


def in_a_loop(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda total, row: (total + row @ b, row), jnp.zeros(7), a)[0]


def in_a_branch(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b: a @ b, 3 * 5 * 7),
        (jax.jit(lambda a, b: jnp.tanh(a @ b) + 1), 3 * 5 * 7),
        (jax.vmap(lambda row, b: row @ b, in_axes=(0, None)), 3 * 5 * 7),
        (in_a_loop, 3 * 5 * 7),
        (in_a_branch, 3 * 5 * 7),
        (lambda a, b: jnp.convolve(a[0], b[0]), 11 * 5),  # the shorter slides along the longer
        (lambda a, b: a * 2 + b[:3, :5], 0),
    ],
)
def test_every_product_counts_once(function, expected: int) -> None:
    assert traced_multiply_adds(function, A, B) == expected
