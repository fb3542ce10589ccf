"""The step as shapes: which layers are stacked, how the trunk is cut, and what it takes and gives back."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.nn.expert_ffn import OneDevice
from moe_lab.nn.layers import RMSNorm
from moe_lab.nn.pool import Pool
from moe_lab.nn.spec import TrunkSpec
from moe_lab.nn.trunk import Experts, Layer, token_losses
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import BLOCKS, DATA, EVERYWHERE, EXPERT, longest_axis, make_mesh
from moe_lab.parallel.placement import Piece, Placement
from moe_lab.parallel.pool import lay_out, tables
from moe_lab.parallel.spec import MeshSpec
from moe_lab.planning.abstract_layer import build_layer
from moe_lab.planning.abstract_step import (
    AbstractStep,
    StepShape,
    build_step,
    bytes_per_device,
    route,
    stacks,
)

BLOCKS_E = (1, 2, 3)
PLACED = Placement(2, BLOCKS_E, (Piece(0, 0, 0, 1, 0), Piece(1, 0, 0, 2, 0), Piece(2, 0, 0, 3, 1)))
TRUNK = TrunkSpec(vocab_size=64, d_model=16, num_layers=5, num_heads=2, ffn_width=32, routed_layers=(1, 3), block=8)


def shape_of(**changes: object) -> StepShape:
    settings = {"top_k": 2, "rows": 4, "seq_len": 8, "train": False, "dtype": "float32", "trunk_sharding": "sharded"}
    rungs = ((1, 1), (1, 2), (1, 3))
    return StepShape(trunk=TRUNK, placements={1: PLACED, 3: PLACED}, rungs_ER=rungs, **(settings | changes))  # type: ignore[arg-type]


def step_of(**changes: object) -> AbstractStep:
    mesh = make_mesh(MeshSpec(data=2, expert=2), jax.devices()[:4])
    return build_step(shape_of(**changes), ShardedLayer(mesh=mesh, overflow="count", backend="worklist"))


def filled(step: AbstractStep) -> dict:
    """Small random numbers in the step's own shapes and shardings, and the placement's tables."""
    random = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            values = random.integers(0, 3, leaf.shape)
        else:
            values = random.normal(size=leaf.shape) * 0.1
        return jax.device_put(jnp.asarray(values, leaf.dtype), leaf.sharding)

    arguments = jax.tree.map(fill, step.arguments)
    written = tables(lay_out(PLACED))
    for table in (table for stack in arguments["tables"] for table in stack.values()):
        assert table.shared_blocks == 0
    real = {
        "holdings": written.holdings,
        "copies": written.copies_E,
        "count": written.count_E,
        "shared": written.shared_S,
    }
    arguments["tables"] = [
        {j: dataclasses.replace(table, **real) for j, table in stack.items()} for stack in arguments["tables"]
    ]
    return arguments


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
    assert stacks(kinds) == cut


def test_the_trunk_is_cut_along_the_longest_axis_that_divides() -> None:
    both = (DATA, EXPERT)
    assert longest_axis((64, 16), 4, stacked=False) == jax.P(both)
    assert longest_axis((2, 6, 16), 4, stacked=True) == jax.P(None, None, both)
    assert longest_axis((4, 6, 7), 4, stacked=True) == EVERYWHERE


def test_bytes_are_those_of_one_device() -> None:
    step = step_of()
    blocks = 2 * 3 * 3 * 16 * 8 * 4  # layers, slots, projections, D, B, float32
    assert step.argument_bytes()["pools"] == blocks
    assert step_of(dtype="bfloat16").argument_bytes()["pools"] == blocks // 2
    trained = step_of(dtype="bfloat16", train=True).argument_bytes()
    assert trained["pools"] == blocks, "float32 masters"
    assert trained["adam"] == 2 * blocks + 4
    assert step_of(trunk_sharding="replicated").argument_bytes()["trunk"] > 3 * step.argument_bytes()["trunk"]
    mesh = make_mesh(MeshSpec(data=2, expert=2), jax.devices()[:4])
    split = jax.ShapeDtypeStruct((4, 6), jnp.bfloat16, sharding=jax.NamedSharding(mesh, BLOCKS))
    assert bytes_per_device(split) == 2 * 6 * 2


def plain_loss(trunk: Any, tokens: jax.Array, router: Any, pools: Any) -> jax.Array:
    """The loss of the filled step by the trunk's own layers, one behind the other."""
    graph = nnx.split(nnx.eval_shape(lambda: Layer(TRUNK, 0, rngs=nnx.Rngs(0))))[0]
    norm = nnx.merge(nnx.split(RMSNorm(16, TRUNK.rms_norm_eps))[0], trunk["norm"])
    x_BSD = trunk["embedding"][tokens]
    routing = route(x_BSD, router, norm, 2)
    segments, positions = jnp.zeros_like(tokens), jnp.broadcast_to(jnp.arange(8), tokens.shape)
    for index in range(5):
        stack, place, turn = (0, index % 2, index // 2) if index < 4 else (1, 0, 0)
        experts = None
        if place:
            blocks = jax.tree.map(lambda w, turn=turn: w[turn], pools[0][1])
            # On either device the slots are full, so all of them in a row are the modules in a row.
            pool = Pool(blocks, jnp.array([0, 1, 3]), jnp.array(BLOCKS_E))
            experts = Experts(pools={0: pool}, routing=routing, run=OneDevice(backend="reference"))
        state = jax.tree.map(lambda w, turn=turn: w[turn], trunk["layers"][stack][place])
        x_BSD = nnx.merge(graph, state)(x_BSD, segments, positions, experts, 0)
    logits = norm(x_BSD) @ trunk["embedding"].T
    return token_losses(logits[:, :-1], tokens[:, 1:]).mean()


@pytest.mark.slow
def test_the_loss_is_that_of_the_layers_on_one_device() -> None:
    step = step_of()
    given = filled(step)
    expected = jax.jit(plain_loss)(given["trunk"], given["tokens"], given["router"], given["pools"])
    loss, left_out = jax.jit(step.function)(**given)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert left_out == 0


@pytest.mark.slow
def test_a_training_step_gives_back_the_state_it_took() -> None:
    step = step_of(train=True)
    pools, adam, loss, _ = jax.eval_shape(step.function, **step.arguments)
    shapes = partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert shapes(pools) == shapes(step.arguments["pools"])
    assert shapes(adam) == shapes(step.arguments["adam"])
    assert loss.shape == ()
    assert step.donated == ("pools", "adam")


def test_one_layer_has_gradients_in_tokens_blocks_and_weights() -> None:
    mesh = make_mesh(MeshSpec(data=2, expert=2), jax.devices()[:4])
    run = ShardedLayer(mesh=mesh, overflow="count", backend="worklist")
    forward, gradient = build_layer(shape_of(), run, 1)
    assert jax.eval_shape(forward.function, **forward.arguments).shape == (32, 16)
    _, (h, blocks, weight) = jax.eval_shape(gradient.function, **gradient.arguments)
    assert (h.shape, weight.shape) == ((32, 16), (32, 2))
    assert blocks.gate.shape == (6, 16, 8)
