"""The step as shapes: which layers are stacked, how the trunk is cut, and what it takes and gives back."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.nn.decoder import Experts, abstract_trunk
from moe_lab.nn.expert_ffn import OneDevice
from moe_lab.nn.losses import token_losses
from moe_lab.nn.pool import Pool
from moe_lab.nn.spec import TrunkSpec
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import BLOCKS, DATA, EXPERT, REPLICATED, longest_axis, make_mesh
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
    (table,) = arguments["tables"].values()
    assert table.shared_blocks == 0
    real = {
        "holdings": written.holdings,
        "copies": written.copies_E,
        "count": written.count_E,
        "shared": written.shared_L,
    }
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), real)
    arguments["tables"] = {1: dataclasses.replace(table, **both)}
    return arguments


def test_the_trunk_is_cut_along_the_longest_axis_that_divides() -> None:
    both = (DATA, EXPERT)
    assert longest_axis((64, 16), 4, stacked=False) == jax.P(both)
    assert longest_axis((2, 6, 16), 4, stacked=True) == jax.P(None, None, both)
    assert longest_axis((4, 6, 7), 4, stacked=True) == REPLICATED


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
    """The loss of the filled step by an unrolled trunk on one device."""
    flat = dict(nnx.to_flat_state(trunk))
    place = {0: (0, None), 1: (1, 0), 2: (2, 0), 3: (1, 1), 4: (2, 1)}  # by layer: place in the stacks, turn
    graph, abstract = abstract_trunk(TRUNK)

    def leaf(path: tuple) -> Any:
        if path[0] != "layers":
            return flat[path]
        at, turn = place[path[1]]
        stacked = flat["layers", at, *path[2:]]
        return stacked if turn is None else jax.tree.map(lambda w: w[turn], stacked)

    model = nnx.merge(graph, nnx.from_flat_state({path: leaf(path) for path, _ in nnx.to_flat_state(abstract)}))
    where = jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(8), tokens.shape)
    hidden = model.enter(tokens, *where).hidden_BSD
    # On either device the slots are full, so all of them in a row are the modules in a row.
    table = jnp.array([0, 1, 3]), jnp.array(BLOCKS_E)
    placed = {
        layer: Pool(jax.tree.map(lambda w, turn=turn: w[turn], pools[1]), *table) for turn, layer in enumerate((1, 3))
    }
    experts = Experts(placed, route(hidden, router, 2), OneDevice(backend="reference"))
    logits = model.head(model.routed(hidden, *where, experts).hidden_BSD)
    return token_losses(logits[:, :-1], tokens[:, 1:]).mean()


@pytest.mark.slow
def test_the_loss_is_that_of_the_layers_on_one_device() -> None:
    step = step_of()
    given = filled(step)
    expected = jax.jit(plain_loss)(given["trunk"], given["tokens"], given["router"], given["pools"])
    loss, dropped = jax.jit(step.function)(**given)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert dropped == 0


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
