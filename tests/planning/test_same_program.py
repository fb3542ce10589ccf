"""What is planned is what runs: the programs of plans beside those of the composed model, both by the compiler."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.compose.build import build_model
from moe_lab.compose.model import ComposedModel, compose_pass
from moe_lab.config import decode
from moe_lab.data import Batch
from moe_lab.experts.kinds import DEFAULT, find_kind
from moe_lab.jobs.objectives import ModuleObjective
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import TOKENS, to_mesh
from moe_lab.parallel.placement import Piece, Placement
from moe_lab.planning.abstract_step import AbstractStep, StepShape, build_step
from moe_lab.planning.model import PlannedModel, model_of_lock
from moe_lab.planning.spec import PlanSettings
from moe_lab.routing.router import Features, normalised
from tests.compose.published import FIXED, TRUNK, Tokens, publish_all
from tests.parallel.meshes import mesh_of

ROWS, LENGTH, BLOCKS = 8, 24, 4


def plan_step(
    placements: dict[int, Placement], rungs_ER: tuple, run: ShardedLayer, *, train: bool = False
) -> AbstractStep:
    """The step of a model whose layers lie differently, so that none are stacked: a loop's FLOPs count once."""
    assert placements[0] != placements[1]
    shape = StepShape(
        trunk=TRUNK,
        placements=placements,
        rungs_ER=rungs_ER,
        top_k=1,
        rows=ROWS,
        seq_len=LENGTH,
        train=train,
        dtype="float32",
        trunk_sharding="sharded",
        recompute=False,
    )
    return build_step(shape, run)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ComposedModel, PlannedModel]:
    """A composed model on four devices, and the model that is planned for its lockfile."""
    published = publish_all(tmp_path_factory.mktemp("planned") / "lab")
    lock = published.lock(FIXED)
    model = build_model(lock, published.registry, published.lab, mesh_of(2, 2), shard_trunk=True)
    return model, model_of_lock(lock, published.registry, decode(PlanSettings, {"seq_len": LENGTH, "top_k": 1}, "test"))


def drawn_batch(mesh: Any) -> tuple:
    drawn = [Tokens.draw(seed, LENGTH) for seed in range(ROWS // 2)]
    return tuple(to_mesh(np.concatenate(part), mesh, TOKENS) for part in zip(*drawn, strict=True))


def flops(program: Any) -> float:
    return float(program.compile().cost_analysis()["flops"])


def bytes_of_first_device(tree: Any) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_bytes_and_flops_of_a_plan_are_those_of_the_program_that_evaluates(composed: Any) -> None:
    model, planned = composed
    step = plan_step(planned.place(2, 0.0), planned.rungs_ER, model.run_layer)
    arrays, counted = model.arrays(), step.argument_bytes()
    assert counted["trunk"] == bytes_of_first_device(arrays.trunk)
    assert counted["pools"] == bytes_of_first_device([pool.blocks for pool in arrays.pools.values()])

    def evaluate(arrays: Any, batch: Any, available_E: Any) -> Any:
        trunk, router = nnx.merge(model.trunk_graph, arrays.trunk), nnx.merge(nnx.graphdef(model.router), arrays.router)
        tokens, targets, segments, positions = batch
        hidden = trunk.enter(tokens, segments, positions).hidden_BSD
        available_BE = jnp.broadcast_to(available_E, (len(tokens), len(available_E)))
        features = Features(normalised(hidden), tokens, segments, available_BE, jnp.zeros(len(tokens)))
        made = compose_pass(trunk, router, arrays, batch, features, hidden, np.int32(-1), model.run_layer)
        return trunk.losses(made.hidden_BSD, targets).mean()

    real = jax.jit(evaluate).lower(arrays, drawn_batch(model.mesh), model.available())
    assert flops(step.lower()) == pytest.approx(flops(real), rel=0.03)


@pytest.mark.slow
def test_flops_of_a_plan_are_those_of_the_program_that_trains_a_module(composed: Any) -> None:
    model, _ = composed
    trunk, mesh, layers = model.trunk, model.mesh, TRUNK.routed_layers
    width, half = BLOCKS * TRUNK.block, BLOCKS // 2
    placements = {
        layer: Placement(2, (BLOCKS,), tuple(Piece(0, 0, half * i, half, (i + layer) % 2) for i in range(2)))
        for layer in layers
    }
    step = plan_step(placements, ((BLOCKS,),), ShardedLayer(mesh=mesh), train=True)
    kind = find_kind(DEFAULT)
    objective = ModuleObjective(
        trunk,
        kind,
        lambda key: {layer: kind.init(key, TRUNK.d_model, width, TRUNK.block) for layer in layers},
        (width,),
        1.0,
        batches=None,  # type: ignore[arg-type]
        units_per_step=0,
        mesh=mesh,
    )
    params, (tokens, targets, segments, positions) = objective.init(jax.random.key(0)), drawn_batch(mesh)
    domain, counts = to_mesh(np.zeros(ROWS, np.int32), mesh, TOKENS), to_mesh(np.ones((ROWS, LENGTH)), mesh, TOKENS)
    batch = Batch(tokens, targets, segments, positions, counts, counts, domain, counts, counts)
    gradient = jax.value_and_grad(objective.loss, has_aux=True)
    real = jax.jit(gradient).lower(params, objective.frozen, batch, jax.random.key(0))
    assert flops(step.lower()) == pytest.approx(flops(real), rel=0.03)
