"""One routed layer over a mesh, as shapes only: the gate that a gradient costs no more than two forward passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from moe_lab.nn.pool import Blocks, Routing
from moe_lab.parallel.layer import ShardedLayer
from moe_lab.parallel.mesh import TOKENS
from moe_lab.parallel.pool import PlacedPool
from moe_lab.planning.abstract_step import AbstractStep, Builder, StepShape


def build_layer(shape: StepShape, run: ShardedLayer, layer: int) -> tuple[AbstractStep, AbstractStep]:
    """Forward, and value with the gradients in tokens, blocks and weights, of one routed layer."""
    make, tokens = Builder(shape, run.mesh), shape.rows * shape.seq_len

    def by_token(dtype: Any, width: int) -> Any:
        return make.array((tokens, width), dtype, TOKENS)

    routing = Routing(*(by_token(dtype, shape.top_k) for dtype in (jnp.int32, jnp.int32, jnp.float32)))
    placement = shape.placements[layer]
    arguments = {
        "h": by_token(make.dtype, shape.trunk.d_model),
        "blocks": make.blocks(placement),
        "tables": make.tables(placement),
        "routing": routing,
    }

    def forward(h: jax.Array, blocks: Blocks, tables: PlacedPool, routing: Routing) -> jax.Array:
        return run(h, dataclasses.replace(tables, blocks=blocks), routing, activation=shape.trunk.activation).y_TD

    def gradient(h: jax.Array, blocks: Blocks, tables: PlacedPool, routing: Routing) -> Any:
        def loss(h: jax.Array, blocks: Blocks, weight: jax.Array) -> jax.Array:
            return forward(h, blocks, tables, routing._replace(weight=weight)).astype(jnp.float32).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(h, blocks, routing.weight)

    return tuple(AbstractStep(function, arguments) for function in (forward, gradient))  # type: ignore[return-value]
