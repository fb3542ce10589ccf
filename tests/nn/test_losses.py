"""Losses that are made a few positions at a time against those from all logits at once, in value and gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab.nn.losses import Unembedding, mask_padding

ROWS, LENGTH, WIDTH, VOCABULARY = 2, 11, 6, 13
EVERYTHING = ROWS * LENGTH


def drawn(seed: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Hidden states, a matrix, targets, and what each loss counts: some nothing."""
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(ROWS, LENGTH, WIDTH)), rng.normal(size=(WIDTH, VOCABULARY))
    counts = rng.normal(size=(ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < 0.7)
    targets = jnp.asarray(rng.integers(0, VOCABULARY, (ROWS, LENGTH)), jnp.int32)
    return jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32), targets, jnp.asarray(counts, jnp.float32)


@partial(jax.jit, static_argnames=("multiplier", "softcap", "tied", "at_once", "of"))
def value_and_gradient(x: Any, weight: Any, targets: Any, counts: Any, *, of: tuple[int, ...], **how: Any) -> tuple:
    at_once = how.pop("at_once")

    def total(x: jax.Array, weight: jax.Array) -> jax.Array:
        return (Unembedding(weight, **how).losses(x, targets, at_once) * counts).sum()

    return jax.value_and_grad(total, argnums=of)(x, weight)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"multiplier": 1.0, "softcap": None}, {"multiplier": 0.5, "softcap": 1.5}])
@pytest.mark.parametrize("of", [(0,), (1,), (0, 1)])
def test_value_and_gradient_are_those_of_all_logits_at_once(how: dict, of: tuple[int, ...]) -> None:
    given = drawn(0)
    expected = value_and_gradient(*given, at_once=EVERYTHING, of=of, **how)
    found = value_and_gradient(*given, at_once=4 * ROWS, of=of, **how)  # 4, 4 and 3 positions
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("of", [(0,), pytest.param((0, 1), marks=pytest.mark.slow)])
def test_an_embedding_as_the_matrix_gives_the_same(of: tuple[int, ...]) -> None:
    x, weight, *rest = drawn(3)
    how: dict[str, Any] = {"multiplier": 0.5, "softcap": 1.5, "at_once": 4 * ROWS, "of": of}
    total, expected = value_and_gradient(x, weight, *rest, **how)
    tied_total, found = value_and_gradient(x, weight.T, *rest, tied=True, **how)
    np.testing.assert_allclose(tied_total, total, rtol=1e-5)
    for i, gradient in zip(of, found, strict=True):
        np.testing.assert_allclose(gradient.T if i else gradient, expected[i], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_embedding_is_not_kept_twice() -> None:
    x, weight = jax.ShapeDtypeStruct((2, 64, 512), jnp.float32), jax.ShapeDtypeStruct((1024, 512), jnp.float32)
    targets = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def total(x: jax.Array, weight: jax.Array, targets: jax.Array) -> jax.Array:
        return Unembedding(weight, tied=True).losses(x, targets, 8).sum()

    compiled = jax.jit(total).lower(x, weight, targets).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < weight.size * 4 / 2


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, EVERYTHING - 1])
def test_however_the_positions_are_cut_losses_and_hits_are_the_same(at_once: int) -> None:
    x, weight, targets, _ = drawn(1)
    head = Unembedding(weight)
    losses, hits = head.scores(x, targets, EVERYTHING)
    for found in (head.scores(x, targets, at_once)[0], head.losses(x, targets, at_once)):
        np.testing.assert_allclose(found, losses, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(head.scores(x, targets, at_once)[1], hits)
    assert 0 < hits.sum() < hits.size


@pytest.mark.slow
def test_all_logits_are_never_in_memory_at_once() -> None:
    x = jax.ShapeDtypeStruct((4, 256, 8), jnp.float32)
    weight, targets = jax.ShapeDtypeStruct((8, 1024), jnp.float32), jax.ShapeDtypeStruct((4, 256), jnp.int32)

    def total(x: jax.Array, weight: jax.Array, targets: jax.Array) -> jax.Array:
        return Unembedding(weight).losses(x, targets, 64).sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(x, weight, targets).compile()
    everything = 4 * 256 * 1024 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < everything / 3


@pytest.mark.slow
def test_a_narrow_dtype_s_logits_and_losses_are_float32() -> None:
    x, weight, targets, _ = drawn(2)
    losses = Unembedding(weight).losses(x.astype(jnp.bfloat16), targets, 8)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, Unembedding(weight).losses(x, targets, EVERYTHING), rtol=0.05, atol=0.05)


def test_no_token_is_picked_from_the_padding_of_a_vocabulary() -> None:
    logits = jnp.arange(10.0).reshape(1, 2, 5)
    np.testing.assert_array_equal(jnp.argmax(mask_padding(logits, 2), -1), [[2, 2]])
    np.testing.assert_array_equal(mask_padding(logits, 0), logits)
