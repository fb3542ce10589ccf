"""What a policy promises: which numbers are narrow, which stay float32, and how near the result is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.errors import LabError
from moe_lab.nn.decoder import Experts, Trunk
from moe_lab.nn.expert_ffn import OneDevice
from moe_lab.nn.norms import RMSNorm
from moe_lab.nn.pool import Blocks, make_pool
from moe_lab.nn.precision import BFLOAT16, FLOAT32, Precision, cast_params, choose_precision
from moe_lab.nn.spec import TrunkSpec
from tests.nn import oracle
from tests.nn.drawing import random_blocks
from tests.nn.test_trunk import BASE, LENGTH, routed_everywhere, row

SPEC = TrunkSpec(**BASE, qk_norm=True)


def test_auto_is_narrow_where_the_platform_multiplies_narrow_numbers() -> None:
    assert choose_precision("auto", "cpu") == FLOAT32 == choose_precision()
    assert choose_precision("auto", "tpu") == choose_precision("auto", "gpu") == BFLOAT16
    assert choose_precision("bfloat16", "cpu") == BFLOAT16
    assert choose_precision("bfloat16_weights") == Precision(params=jnp.bfloat16, compute=jnp.float32)
    with pytest.raises(LabError, match='precision "bfloat15" does not exist. Did you mean'):
        choose_precision("bfloat15")


def run(precision: Precision) -> tuple[Any, Any]:
    """Hidden states, loss, and the gradient of a module's blocks."""
    graph, state = oracle.randomised(lambda: Trunk(SPEC, rngs=nnx.Rngs(0), precision=precision))
    trunk_state = cast_params(state, precision)
    assert {leaf.dtype for leaf in jax.tree.leaves(trunk_state)} == {jnp.dtype(precision.params)}
    tokens, segments, positions = row(LENGTH)

    @jax.jit
    def step(state: Any, blocks: Blocks) -> tuple:
        def loss(blocks: Blocks) -> tuple[jax.Array, jax.Array]:
            trunk = nnx.merge(graph, state)
            experts = Experts({1: make_pool([blocks])}, routed_everywhere(2), OneDevice(backend="reference"))
            hidden = trunk.forward(tokens, segments, positions, experts).hidden_BSD
            return trunk.losses(hidden, jnp.roll(tokens, -1)).mean(), hidden

        return jax.value_and_grad(loss, has_aux=True)(blocks)

    return step(trunk_state, random_blocks(np.random.default_rng(0), 2, d_model=8))


@pytest.mark.slow
def test_a_narrow_trunk_is_near_a_wide_one_and_what_is_trained_beside_it_is_float32() -> None:
    (wide_loss, wide), wide_gradient = run(FLOAT32)
    (loss, hidden), gradient = run(BFLOAT16)
    assert (hidden.dtype, loss.dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in gradient} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(loss, wide_loss, rtol=2e-2)
    np.testing.assert_allclose(hidden.astype(jnp.float32), wide, atol=0.15)
    for found, expected in zip(gradient, wide_gradient, strict=True):
        assert jnp.linalg.norm(found - expected) < 0.1 * jnp.linalg.norm(expected)


def test_the_cast_of_a_norm_comes_before_or_after_its_scale() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 6)), jnp.bfloat16)
    scale = jnp.asarray(np.random.default_rng(1).normal(size=6), jnp.float32)
    results = {}
    for cast in ("last", "before_scale"):
        norm = RMSNorm(6, TrunkSpec(norm_cast=cast))  # type: ignore[arg-type]
        unit = norm(x.astype(jnp.float32))
        norm.scale[...] = scale
        results[cast] = norm(x)
        before = unit.astype(jnp.bfloat16) * scale.astype(jnp.bfloat16)
        np.testing.assert_array_equal(norm(x), before if cast == "before_scale" else (unit * scale).astype(x.dtype))
    assert (results["last"] != results["before_scale"]).any()
