"""A fixed number of rows for every block, in training only: it drops what has no place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.nn.backend import Backend, Drops

if TYPE_CHECKING:
    import jax

    from moe_lab.nn.pool import Pool, Routing


def _run(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str, budget: int | None) -> jax.Array:
    from moe_lab.nn.kernels.capacity import expert_ffn

    return expert_ffn(h_TD, pool, routing, activation, budget)


def _beyond_budget(pool: Pool, routing: Routing, budget: int | None) -> jax.Array:
    from moe_lab.nn.kernels.capacity import rows_beyond_budget

    return rows_beyond_budget(pool, routing, budget)


BACKEND = Backend(
    name="capacity",
    where="anywhere",
    how="static shapes, batched matmuls",
    run=_run,
    drops=Drops.BEYOND_CAPACITY,
    beyond_budget=_beyond_budget,
)
