"""Products and norms of tokens whose bits are their own, beside float64, at any number of tokens and any size."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.nn.backends import native
from moe_lab.nn.backends.native import check
from moe_lab.nn.decoder import Trunk
from moe_lab.nn.norms import RMSNorm
from moe_lab.nn.products import product_by_token
from moe_lab.nn.spec import TrunkSpec

compiled = pytest.mark.skipif(native.obstacle_here(np.float32) is not None, reason="what is promised is the kernel's")


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("turned", [False, True], ids=["columns", "rows"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("tokens", "width", "columns"), [(1, 1, 1), (1, 67, 300), (3, 130, 15), (17, 300, 530), (40, 16, 64)]
)
def test_a_product_is_that_of_float64(tokens: int, width: int, columns: int, dtype: Any, turned: bool) -> None:
    x, weight = numbers(tokens, width), jnp.asarray(numbers(columns, width), dtype)
    got = product_by_token(x, weight if turned else weight.T, turned=turned)
    expected = x.astype(np.float64) @ np.asarray(weight.T, np.float64)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.sqrt(width))


@compiled
@pytest.mark.parametrize("turned", [False, True], ids=["columns", "rows"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_token_has_its_bits_beside_any_others(dtype: Any, turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = numbers(37, 203), jnp.asarray(numbers(203, 203), dtype)
    together = np.asarray(product_by_token(x, weight, turned=turned))
    for part in (slice(0, 1), slice(3, 5), slice(5, 9), slice(2, 23), slice(36, 37)):
        np.testing.assert_array_equal(product_by_token(x[part], weight, turned=turned), together[part])
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    np.testing.assert_array_equal(product_by_token(x[None, ::-1], weight, turned=turned)[0, ::-1], together)


@compiled
def test_a_norm_by_token_is_the_norm_and_has_its_bits_beside_any_others() -> None:
    spec = TrunkSpec(norm_offset=1.0, rms_norm_eps=0.01)
    norm = RMSNorm(131, spec)
    norm.scale[...] = jnp.asarray(numbers(131))
    x = numbers(3, 50, 131)
    got: Any = norm(x, by_token=True)
    np.testing.assert_allclose(got, norm(x), rtol=1e-5)
    np.testing.assert_array_equal(norm(x[1:2, 7:8], by_token=True), got[1:2, 7:8])


def test_what_the_kernel_does_not_know_goes_through_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = jnp.asarray(numbers(3, 20), jnp.bfloat16), numbers(20, 30)
    got: Any = product_by_token(x, jnp.asarray(weight), dtype=jnp.float32)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, x.astype(jnp.float32) @ weight, atol=0.1)
    monkeypatch.setattr(check, "obstacle", lambda: "there is no compiler")
    text = jax.jit(lambda x: product_by_token(x, weight)).lower(numbers(3, 20)).as_text()
    assert "moe_lab" not in text


@pytest.mark.slow
def test_behind_a_cache_all_goes_through_xla_where_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TrunkSpec(d_model=8, num_layers=2, num_heads=2, ffn_width=8, vocab_size=5, routed_layers=(0,))
    graph, state = nnx.split(Trunk(spec, rngs=nnx.Rngs(0)))
    tokens = np.arange(6, dtype=np.int32)[None] % 5

    def read() -> tuple[str, jax.Array]:
        def run(state: Any) -> jax.Array:
            trunk = nnx.merge(graph, state)
            output = trunk.forward(tokens, np.ones_like(tokens), tokens, None, trunk.make_cache(1, 8))
            return trunk.head(output.hidden_BSD, by_token=True)

        traced = jax.jit(run).lower(state)
        return traced.as_text(), traced.compile()(state)

    here, there = check.obstacle() is None, read()
    assert ("moe_lab_cached_attention" in there[0]) == here
    monkeypatch.setattr(check, "obstacle", lambda: "there is no compiler")
    text, expected = read()
    assert "moe_lab" not in text
    np.testing.assert_allclose(there[1], expected, rtol=1e-4, atol=1e-5)
