"""The parts of the trunk against numpy, token by token."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings

from moe_lab.nn.attention import Attention
from moe_lab.nn.ffn import Linear
from moe_lab.nn.kernels.attention import QUERY_CHUNK, Scoring, causal_attention
from moe_lab.nn.norms import RMSNorm
from moe_lab.nn.rope import rotary_tables, rotate
from moe_lab.nn.spec import RopeSpec, TrunkSpec
from tests.nn import oracle
from tests.nn.drawing import seeds

LENGTH = 2 * QUERY_CHUNK + 13
"""Two whole query chunks and part of a third."""

HALF = Scoring(0.5)
"""Heads of four numbers."""

attend = jax.jit(causal_attention, static_argnums=4)


@partial(jax.jit, static_argnums=2)
def turn(x_BSHA: jax.Array, positions_BS: jax.Array, rope: RopeSpec) -> jax.Array:
    return rotate(x_BSHA, *rotary_tables(positions_BS, rope, x_BSHA.shape[-1]))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def packed(rng: np.random.Generator, rows: int, length: int, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids and positions of rows of documents of random lengths, padded at the end with segment 0."""
    segments, positions = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    for row in range(rows):
        ends = np.sort(rng.choice(np.arange(1, length), documents, replace=False))
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False), start=1):
            segments[row, start:end], positions[row, start:end] = number, np.arange(end - start)
    return segments, positions


@pytest.mark.slow
@given(seed=seeds)
@settings(max_examples=8)
def test_attention_is_a_softmax_over_the_earlier_tokens_of_the_document(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = (normal(rng, 2, 3, LENGTH, 4) for _ in range(3))
    segments, _ = packed(rng, 2, LENGTH, 5)
    got = attend(2 * q, 2 * k, v, segments, HALF)
    for row, head in np.ndindex(2, 3):
        expected = oracle.attend(*(t[row, head].astype(np.float64) for t in (2 * q, 2 * k, v)), segments[row])
        np.testing.assert_allclose(got[row, head], expected, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    q = jnp.full((1, 1, 5, 2), 1e4, jnp.float32)
    got = attend(q, q, jnp.ones((1, 1, 5, 2)), jnp.ones((1, 5), jnp.int32), HALF)
    np.testing.assert_allclose(got, 1.0, rtol=1e-6)


@pytest.mark.slow
def test_no_gradient_reaches_later_tokens_or_other_documents() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(normal(rng, 1, 1, 9, 4)) for _ in range(3))
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 0]])
    # Token 6 may use tokens 4, 5 and 6.
    for gradient in jax.grad(lambda k, v: attend(q, k, v, segments, HALF)[0, 0, 6].sum(), argnums=(0, 1))(k, v):
        used = np.asarray(jnp.abs(gradient[0, 0]).sum(-1)) > 0
        np.testing.assert_array_equal(used, [False] * 4 + [True] * 3 + [False] * 2)


@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_rotation_turns_pairs_by_position_times_frequency(base: float) -> None:
    rng = np.random.default_rng(1)
    x, positions = normal(rng, 2, 7, 3, 6), rng.integers(0, 200, (2, 7)).astype(np.int32)
    got = turn(x, positions, RopeSpec(base=base))
    for row, head in np.ndindex(2, 3):
        expected = oracle.rotate(x[row, :, head].astype(np.float64), positions[row], RopeSpec(base=base))
        np.testing.assert_allclose(got[row, :, head], expected, rtol=1e-4, atol=1e-4)


@given(seed=seeds)
@settings(max_examples=10)
def test_rotated_products_depend_on_distance_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k = normal(rng, 1, 1, 1, 8), normal(rng, 1, 1, 1, 8)
    near, far, shift = rng.integers(0, 300, 3)

    def product(query_at: int, key_at: int) -> jax.Array:
        at = [np.full((1, 1), place, np.int32) for place in (query_at, key_at)]
        return (turn(q, at[0], RopeSpec()) * turn(k, at[1], RopeSpec())).sum()

    np.testing.assert_allclose(product(near, far), product(near + shift, far + shift), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(product(near, near), (q * k).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_rms_norm_divides_by_the_root_mean_square_in_float32() -> None:
    rng = np.random.default_rng(2)
    norm = RMSNorm(6, TrunkSpec(rms_norm_eps=0.1))
    norm.scale[...] = jnp.asarray(normal(rng, 6))
    x = 3 * normal(rng, 4, 6)
    expected = oracle.rms_norm(x.astype(np.float64), np.asarray(norm.scale[...], np.float64), 0.1)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    narrow = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_array_equal(norm(narrow), norm(narrow.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_a_matrix_and_a_bias(bias: bool) -> None:
    rng = np.random.default_rng(3)
    graph, state = oracle.randomised(lambda: Linear(3, 5, bias=bias, rngs=nnx.Rngs(0)))
    layer, x = nnx.merge(graph, state), normal(rng, 2, 4, 3)
    expected = oracle.linear(oracle.weights_of(state), "", x.astype(np.float64))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    assert layer(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_query_heads_share_the_key_value_heads_of_their_group(kv_heads: int) -> None:
    rng = np.random.default_rng(4)
    spec = TrunkSpec(d_model=8, num_heads=4, num_kv_heads=kv_heads, head_dim=6)
    graph, state = oracle.randomised(lambda: nnx.Dict(a=Attention(spec, 0, rngs=nnx.Rngs(0))))
    segments, positions = packed(rng, 1, LENGTH, 3)
    x = normal(rng, 1, LENGTH, 8)
    got = jax.jit(lambda state, *inputs: nnx.merge(graph, state).a(*inputs)[0])(state, x, segments, positions)
    weights = oracle.weights_of(state)
    expected = oracle.attention(weights, "a", x[0].astype(np.float64), segments[0], positions[0], spec)
    np.testing.assert_allclose(got[0], expected, rtol=1e-4, atol=1e-5)
