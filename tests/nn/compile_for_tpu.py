"""Compiles one routed layer for a chip that is not here and prints what the compiler says, as one line of JSON.

python tests/nn/compile_for_tpu.py v5e:2x2 [--padded] [--small]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_lab.nn.expert_ffn import expert_ffn
from moe_lab.nn.pool import Blocks, Pool, Routing

TOKENS, D_MODEL, BLOCK = 4096, 1024, 256
COUNTS = (1, 1, 2, 2, 4, 4, 8, 8)
if "--small" in sys.argv:
    TOKENS, D_MODEL, COUNTS = 1024, 512, (1, 2, 4)


def compile_layer(sharding: NamedSharding, counts: tuple[int, ...], budget: int) -> dict[str, Any]:
    """FLOPs and peak bytes of forward and gradient."""

    def shape(*axes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(axes, dtype, sharding=sharding)

    n = sum(counts)
    blocks = Blocks(shape(n, D_MODEL, BLOCK), shape(n, D_MODEL, BLOCK), shape(n, BLOCK, D_MODEL))
    table = shape(len(counts), dtype=jnp.int32)
    choice = shape(TOKENS, 1, dtype=jnp.int32)
    routing = Routing(choice, choice, shape(TOKENS, 1, dtype=jnp.float32))

    def forward(h: jax.Array, pool: Pool, routing: Routing) -> jax.Array:
        return expert_ffn(h, pool, routing, backend="megablox", budget=budget)

    def gradient(h: jax.Array, pool: Pool, routing: Routing) -> Any:
        def loss(h: jax.Array, blocks: Blocks, weight: jax.Array) -> jax.Array:
            y = forward(h, Pool(blocks, pool.start, pool.count), routing._replace(weight=weight))
            return y.astype(jnp.float32).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(h, pool.blocks, routing.weight)

    found = {}
    for run in (forward, gradient):
        compiled = jax.jit(run).lower(shape(TOKENS, D_MODEL), Pool(blocks, table, table), routing).compile()
        memory = compiled.memory_analysis()
        found[run.__name__] = {
            "flops": compiled.cost_analysis()["flops"],
            "peak_bytes": memory.peak_memory_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
        }
    return found


if __name__ == "__main__":
    device = topologies.get_topology_desc(sys.argv[1], platform="tpu").devices[0]
    here = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    room = 5 * TOKENS * sum(COUNTS) // len(COUNTS) // 4
    found = {"budget": room, "d_model": D_MODEL, "block": BLOCK, "true widths": compile_layer(here, COUNTS, room)}
    if "--padded" in sys.argv:
        widest = (max(COUNTS),) * len(COUNTS)
        found["padded to the widest"] = compile_layer(here, widest, 5 * TOKENS * max(COUNTS) // 4)
    print(json.dumps(found))
