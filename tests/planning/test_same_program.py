"""What is planned is what runs: the program of a plan beside that of the composed model, both by the compiler."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from moe_lab.compose.build import build_model
from moe_lab.compose.model import ComposedModel, compose_pass
from moe_lab.config import decode
from moe_lab.parallel.mesh import TOKENS, to_mesh
from moe_lab.planning.abstract_step import AbstractStep, StepShape, build_step
from moe_lab.planning.model import model_of_lock
from moe_lab.planning.spec import PlanSettings
from moe_lab.routing.router import Features, normalised
from tests.compose.published import FIXED, TRUNK, Tokens, publish_all
from tests.parallel.meshes import mesh_of

ROWS, LENGTH = 8, 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ComposedModel, AbstractStep]:
    """A composed model on four devices, and the step that is planned for it."""
    published = publish_all(tmp_path_factory.mktemp("planned") / "lab")
    lock, mesh = published.lock(FIXED), mesh_of(2, 2)
    model = build_model(lock, published.registry, published.lab, mesh, shard_trunk=True)
    planned = model_of_lock(lock, published.registry, decode(PlanSettings, {"seq_len": LENGTH, "top_k": 1}, "test"))
    shape = StepShape(
        trunk=TRUNK,
        placements=planned.place(2, 0.0),
        rungs_ER=planned.rungs_ER,
        top_k=1,
        rows=ROWS,
        seq_len=LENGTH,
        train=False,
        dtype="float32",
        trunk_sharding="sharded",
    )
    return model, build_step(shape, model.run_layer)


def bytes_of_first_device(tree: Any) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_a_plan_s_bytes_and_flops_are_those_of_the_program_that_evaluates(pair: Any) -> None:
    model, step = pair
    arrays, counted = model.arrays(), step.argument_bytes()
    assert counted["trunk"] == bytes_of_first_device(arrays.trunk)
    blocks = [pool.blocks for pool in arrays.pools.values()]
    assert counted["pools"] == bytes_of_first_device(blocks)

    def evaluate(arrays: Any, batch: Any, available_E: Any) -> Any:
        trunk, router = nnx.merge(model.trunk_graph, arrays.trunk), nnx.merge(nnx.graphdef(model.router), arrays.router)
        tokens, targets, segments, positions = batch
        hidden = trunk.enter(tokens, segments, positions).hidden_BSD
        features = Features(normalised(hidden), tokens, segments, available_E, np.float32(0))
        made = compose_pass(trunk, router, arrays, batch, features, hidden, np.int32(-1), model.run_layer)
        return trunk.losses(made.hidden_BSD, targets).mean()

    drawn = [Tokens.draw(seed, LENGTH) for seed in range(ROWS // 2)]
    batch = tuple(to_mesh(np.concatenate(part), model.mesh, TOKENS) for part in zip(*drawn, strict=True))
    real = jax.jit(evaluate).lower(arrays, batch, model.available()).compile()
    planned = step.lower().compile()
    flops = [program.cost_analysis()["flops"] for program in (planned, real)]
    assert flops[0] == pytest.approx(flops[1], rel=0.03)
