"""A module's weights: fresh, cut, permuted, stored; and what its hidden units are ranked by."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.experts.interface import Interface
from moe_lab.experts.kinds.gated_ffn import KIND
from moe_lab.experts.shrink import order_by_importance
from moe_lab.experts.weights import (
    ExpertWeights,
    count_parameters,
    cut,
    init_expert,
    permute,
)
from moe_lab.nn.decoder import Experts, Trunk
from moe_lab.nn.expert_ffn import OneDevice
from moe_lab.nn.pool import Blocks, Routing, from_blocks, make_pool, to_blocks
from moe_lab.nn.spec import TrunkSpec
from tests.nn.oracle import randomised

pytestmark = pytest.mark.slow

SPEC = TrunkSpec(vocab_size=9, d_model=8, num_layers=2, num_heads=2, ffn_width=12, routed_layers=(0, 1), block=4)
INTERFACE = Interface.of_trunk("sha256-trunk", "sha256-tokenizer", SPEC)
WIDTHS = {0: 12, 1: 6}


def random_expert(seed: int = 0, widths: dict[int, int] = WIDTHS) -> ExpertWeights:
    rng = np.random.default_rng(seed)

    def layer(width: int) -> Blocks:
        shapes = ((8, width), (8, width), (width, 8))
        return to_blocks(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes), SPEC.block)

    return {index: layer(width) for index, width in widths.items()}


def units_first(blocks: Blocks) -> list[np.ndarray]:
    """Gate, up and down, each [F, D]."""
    gate, up, down = from_blocks(blocks)
    return [np.asarray(gate.T), np.asarray(up.T), np.asarray(down)]


def function(blocks: Blocks, h: np.ndarray) -> np.ndarray:
    """The gated FFN of one layer, whole and in float64."""
    gate, up, down = (np.asarray(w, np.float64) for w in from_blocks(blocks))
    a = h @ gate
    return (a / (1 + np.exp(-a)) * (h @ up)) @ down


def test_a_fresh_module_has_its_layers_widths_and_a_down_of_zero() -> None:
    weights = init_expert(jax.random.key(0), INTERFACE, WIDTHS)
    assert {layer: blocks.num_blocks for layer, blocks in weights.items()} == {0: 3, 1: 2}
    for layer, width in WIDTHS.items():
        gate, up, down = (np.asarray(w) for w in from_blocks(weights[layer]))
        assert not down.any()
        assert (gate[:, :width] != 0).all()
        assert (up[:, :width] != 0).all()
        assert not gate[:, width:].any()
        np.testing.assert_allclose(gate[:, :width].std(), 8**-0.5, rtol=0.35)
    assert count_parameters(weights) == 3 * 8 * (12 + 8)


def test_layers_and_projections_start_apart() -> None:
    weights = init_expert(jax.random.key(0), INTERFACE, {0: 8, 1: 8})
    drawn = [np.asarray(projection) for blocks in weights.values() for projection in (blocks.gate, blocks.up)]
    assert len({projection.tobytes() for projection in drawn}) == 4


@pytest.mark.parametrize("backend", ["reference", "worklist"])
def test_a_fresh_module_changes_no_bit_of_the_trunk(backend: str) -> None:
    graph, state = randomised(lambda: Trunk(SPEC, rngs=nnx.Rngs(0)))
    weights = init_expert(jax.random.key(1), INTERFACE, WIDTHS)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, 10)), jnp.int32)
    inputs = (tokens, jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(10), (2, 10)))

    @jax.jit
    def run(width: jax.Array) -> jax.Array:
        routing = Routing(jnp.zeros((2, 10, 1), jnp.int32), jnp.full((2, 10, 1), width), jnp.ones((2, 10, 1)))
        pools = {layer: make_pool([blocks]) for layer, blocks in weights.items()}
        return nnx.merge(graph, state)(*inputs, Experts(pools, routing, OneDevice(backend=backend)))

    bare = jax.jit(lambda: nnx.merge(graph, state)(*inputs))()
    np.testing.assert_array_equal(run(jnp.int32(3)), run(jnp.int32(0)))
    np.testing.assert_allclose(run(jnp.int32(3)), bare, rtol=1e-6, atol=1e-6)


@given(width=st.integers(1, 12))
def test_a_cut_module_is_the_first_hidden_units(width: int) -> None:
    weights = random_expert()
    child = cut(weights, width, KIND)
    for layer in WIDTHS:
        kept = min(width, WIDTHS[layer])
        assert child[layer].num_blocks == -(-min(width, 4 * weights[layer].num_blocks) // 4)
        for got, whole in zip(units_first(child[layer]), units_first(weights[layer]), strict=True):
            np.testing.assert_array_equal(got[:kept], whole[:kept])
            assert not got[kept:].any()


def test_a_cut_at_whole_blocks_is_a_prefix() -> None:
    weights = random_expert()
    jax.tree.map(
        np.testing.assert_array_equal,
        cut(weights, 8, KIND),
        {0: Blocks(*(part[:2] for part in weights[0])), 1: weights[1]},
    )
    jax.tree.map(np.testing.assert_array_equal, cut(weights, 12, KIND), weights)


@given(seed=st.integers(0, 2**32 - 1))
def test_permuting_keeps_the_function_and_moves_the_units(seed: int) -> None:
    weights, rng = random_expert(), np.random.default_rng(seed)
    order = {0: rng.permutation(12), 1: rng.permutation(8)}  # the padding of layer 1 included
    moved = permute(weights, order, KIND)
    h = rng.normal(size=(5, 8))
    for layer, index in order.items():
        np.testing.assert_allclose(function(moved[layer], h), function(weights[layer], h), rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(from_blocks(moved[layer])[2], np.asarray(from_blocks(weights[layer])[2])[index])
    back = permute(moved, {layer: np.argsort(index) for layer, index in order.items()}, KIND)
    jax.tree.map(np.testing.assert_array_equal, back, weights)


@pytest.mark.parametrize("order", [[0, 0, *range(2, 12)], list(range(11))])
def test_an_order_names_every_unit_once(order: list[int]) -> None:
    with pytest.raises(AssertionError, match="every hidden unit once"):
        permute(random_expert(), {0: np.array(order), 1: np.arange(8)}, KIND)


def test_units_are_ordered_by_falling_score_and_ties_stay_as_they_were() -> None:
    order = order_by_importance({3: np.array([1.0, 5.0, 1.0, 7.0, 5.0]), 4: np.array([2.0, 2.0, 2.0])})
    np.testing.assert_array_equal(order[3], [3, 1, 4, 0, 2])
    np.testing.assert_array_equal(order[4], [0, 1, 2])
    many = np.tile([1.0, 2.0], 200)  # an unstable sort shows only on many units
    falling = [*range(1, 400, 2), *range(0, 400, 2)]
    np.testing.assert_array_equal(order_by_importance({0: many})[0], falling)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_hidden_activations_and_down_make_the_function(activation: str) -> None:
    blocks, h = random_expert()[0], jnp.asarray(np.random.default_rng(1).normal(size=(5, 8)), jnp.float32)
    hidden = KIND.activations(h, blocks, activation)
    gate, up, down = from_blocks(blocks)
    expected = {"silu": jax.nn.silu, "gelu": jax.nn.gelu}[activation](h @ gate) * (h @ up)
    np.testing.assert_allclose(hidden, expected, rtol=1e-6)
    if activation == "silu":
        whole = function(blocks, np.asarray(h, np.float64))
        np.testing.assert_allclose(np.asarray(hidden) @ np.asarray(down), whole, rtol=1e-4, atol=1e-4)


def test_down_norms_are_one_per_unit_and_zero_for_padding() -> None:
    norms = KIND.output_norms(random_expert()[1])
    down = np.asarray(from_blocks(random_expert()[1])[2])
    np.testing.assert_allclose(norms, np.sqrt((down.astype(np.float64) ** 2).sum(1)), rtol=1e-6)
    assert norms.shape == (8,)
    np.testing.assert_array_equal(norms[6:], 0)
