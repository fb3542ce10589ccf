"""Stacked layers against the same layers unrolled: values, side outputs, caches, gradients, and the program's size."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.nn.decoder import Experts, Trunk
from moe_lab.nn.expert_ffn import OneDevice
from moe_lab.nn.pool import Routing, make_pool
from moe_lab.nn.spec import RopeSpec, TrunkSpec
from moe_lab.nn.stack import Stack, find_stacks, stack_pools, stack_state, stack_trunk, unroll_layers
from tests.nn import oracle
from tests.nn.drawing import random_blocks

LAYERS = 6
SPEC = TrunkSpec(
    vocab_size=11,
    d_model=8,
    num_layers=LAYERS,
    num_heads=2,
    ffn_width=10,
    block=4,
    routed_layers=(2, 3, 4, 5),
    sliding_layers=(2, 4),
    sliding_window=5,
    sliding_rope=RopeSpec(base=100.0),
)
ROWS, LENGTH = 2, 12


@pytest.mark.parametrize(
    ("kinds", "cut"),
    [
        ("aaaa", [(0, 1, 4)]),
        ("abab", [(0, 2, 2)]),
        ("aaabbb", [(0, 1, 3), (3, 1, 3)]),
        ("ababa", [(0, 2, 2), (4, 1, 1)]),
        ("abc", [(0, 1, 1), (1, 1, 1), (2, 1, 1)]),
        ("", []),
    ],
)
def test_layers_that_repeat_are_stacked(kinds: str, cut: list) -> None:
    assert list(find_stacks(kinds)) == cut
    assert [stack.first for stack in find_stacks(kinds, 3)] == [first + 3 for first, _, _ in cut]


def test_no_stack_reaches_over_the_layer_that_the_router_reads_in_front_of() -> None:
    assert stack_trunk(SPEC) == (Stack(0, 1, 2), Stack(2, 2, 2))
    one_kind = TrunkSpec(num_layers=6, routed_layers=(0, 1, 2, 3, 4, 5))
    assert stack_trunk(one_kind) == (Stack(0, 1, 6),)
    assert stack_trunk(one_kind, {index: index // 3 for index in range(6)}) == (Stack(0, 1, 3), Stack(3, 1, 3))
    every_second = TrunkSpec(num_layers=6, routed_layers=(1, 3, 5))
    assert [list(stack.layers(0)) for stack in stack_trunk(every_second)] == [[0], [1, 3], [5]]


class Passes:
    """One pass of a trunk with a module, unrolled and stacked, on the same numbers."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.stacks = stack_trunk(SPEC)
        self.tokens = rng.integers(0, 11, (ROWS, LENGTH)).astype(np.int32)
        _, self.state = oracle.randomised(lambda: Trunk(SPEC, rngs=nnx.Rngs(0)))
        self.pools = {layer: make_pool([random_blocks(rng, 2, d_model=8)]) for layer in SPEC.routed_layers}
        self.unrolled = self.run(unroll_layers(LAYERS), self.state, self.pools)
        self.stacked = self.run(self.stacks, stack_state(self.state, self.stacks), stack_pools(self.pools, self.stacks))

    def run(self, stacks: tuple[Stack, ...], state: Any, pools: Any) -> tuple:
        """Logits, side outputs, logits token by token, and the gradient of a loss in the pools."""
        graph = nnx.graphdef(nnx.eval_shape(lambda: Trunk(SPEC, rngs=nnx.Rngs(0), stacks=stacks)))
        segments = np.ones((ROWS, LENGTH), np.int32)
        positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))

        def experts(pools: Any, length: int) -> Experts:
            routing = Routing(*(jnp.full((ROWS, length, 1), value) for value in (0, 2, 0.7)))
            return Experts(pools, routing, OneDevice(backend="reference"), keep_inputs=True)

        @jax.jit
        def whole(state: Any, pools: Any) -> tuple:
            def loss(pools: Any) -> tuple:
                trunk = nnx.merge(graph, state)
                output = trunk.forward(self.tokens, segments, positions, experts(pools, LENGTH))
                logits = trunk.head(output.hidden_BSD)
                return trunk.losses(output.hidden_BSD, self.tokens).mean(), (logits, output.side)

            (_, made), gradient = jax.value_and_grad(loss, has_aux=True, allow_int=True)(pools)
            return made, [pool.blocks for pool in gradient.values()]

        @jax.jit
        def step(state: Any, cache: Any, at: Any) -> tuple:
            trunk = nnx.merge(graph, state)
            part = [jax.lax.dynamic_slice_in_dim(jnp.asarray(a), at, 1, 1) for a in (self.tokens, segments, positions)]
            output = trunk.forward(*part, experts(pools, 1), cache)
            return trunk.head(output.hidden_BSD), output.cache

        (logits, side), gradient = whole(state, pools)
        cache = nnx.merge(graph, state).make_cache(ROWS, LENGTH)
        steps = []
        for at in range(LENGTH):
            told, cache = step(state, cache, at)
            steps.append(told)
        return logits, side, gradient, jnp.concatenate(steps, axis=1)


@pytest.fixture(scope="module")
def passes() -> Passes:
    return Passes()


@pytest.mark.slow
def test_stacked_layers_compute_what_they_compute_unrolled(passes: Passes) -> None:
    (logits, side, _, _), (expected, expected_side, _, _) = passes.stacked, passes.unrolled
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert side.dropped == expected_side.dropped == 0
    assert set(side.inputs) == {2, 3}
    for layer, expected_TD in expected_side.inputs.items():
        np.testing.assert_allclose(side.inputs[2 + layer % 2][(layer - 2) // 2], expected_TD, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_and_steps_are_those_of_unrolled_layers(passes: Passes) -> None:
    (_, _, gradient, steps), (logits, _, expected, expected_steps) = passes.stacked, passes.unrolled
    expected = dict(zip(SPEC.routed_layers, expected, strict=True))
    for j, blocks in enumerate(gradient):
        for turn in range(2):
            for found, wanted in zip(blocks, expected[2 + j + 2 * turn], strict=True):
                np.testing.assert_allclose(found[turn], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(steps, expected_steps, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(expected_steps, logits, rtol=1e-4, atol=1e-5)


def test_a_stacked_program_does_not_grow_with_depth() -> None:
    def lines(num_layers: int, *, stacked: bool) -> int:
        spec = TrunkSpec(vocab_size=11, d_model=8, num_layers=num_layers, num_heads=2, ffn_width=10)
        stacks = stack_trunk(spec) if stacked else None
        graph, state = nnx.split(nnx.eval_shape(lambda: Trunk(spec, rngs=nnx.Rngs(0), stacks=stacks)))
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        lowered = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs)).lower(state, tokens, tokens, tokens)
        return lowered.as_text().count("\n")

    assert lines(3, stacked=True) == lines(9, stacked=True)
    assert lines(9, stacked=False) > 2.5 * lines(3, stacked=False)


@pytest.mark.slow
def test_a_stacked_trunk_starts_with_the_numbers_of_an_unrolled_one() -> None:
    stacks = stack_trunk(SPEC)
    fresh = nnx.state(Trunk(SPEC, rngs=nnx.Rngs(3), stacks=stacks))
    expected = stack_state(nnx.state(Trunk(SPEC, rngs=nnx.Rngs(3))), stacks)
    jax.tree.map(np.testing.assert_array_equal, fresh, expected)
