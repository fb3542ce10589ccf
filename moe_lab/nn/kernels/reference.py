"""The routed layer as its definition reads: every block on every token, masked. The oracle of all tests.

Blocks are added one after the other, in pool order, so a block that no token uses adds an exact zero and changes no
bit of the result.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe_lab.nn.activations import ACTIVATIONS
from moe_lab.nn.pool import Pool, Routing


def block_weights(pool: Pool, routing: Routing) -> tuple[jax.Array, jax.Array]:
    """Which tokens use which block, and with what weight: bool[N, T], float32[N, T]."""
    block_N = jnp.arange(pool.blocks.num_blocks, dtype=jnp.int32)
    start_TK = pool.start[routing.expert]
    width_TK = jnp.minimum(routing.width, pool.count[routing.expert])
    offset_NTK = block_N[:, None, None] - start_TK
    used_NTK = (offset_NTK >= 0) & (offset_NTK < width_TK)
    return used_NTK.any(-1), jnp.where(used_NTK, routing.weight, 0.0).sum(-1)


def expert_ffn(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str) -> jax.Array:
    """`sum_n weight[n, t] * (act(h gate_n) * (h up_n)) down_n`, block after block."""
    act = ACTIVATIONS[activation]

    def add_block(y_TD: jax.Array, block: tuple) -> tuple[jax.Array, None]:
        (gate_DU, up_DU, down_UD), used_T, weight_T = block
        out_TD = (act(h_TD @ gate_DU) * (h_TD @ up_DU)) @ down_UD
        return y_TD + jnp.where(used_T[:, None], weight_T[:, None] * out_TD, 0.0).astype(y_TD.dtype), None

    used_NT, weight_NT = block_weights(pool, routing)
    # One unused block more: XLA inlines a loop of one round, and inlined code may round differently.
    blocks = jax.tree.map(lambda x: jnp.pad(x, ((0, 1), *[(0, 0)] * (x.ndim - 1))), (pool.blocks, used_NT, weight_NT))
    return jax.lax.scan(add_block, jnp.zeros_like(h_TD), blocks)[0]
