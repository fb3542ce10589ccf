"""Block rows through the grouped matmul for TPUs that comes with jax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.nn.backend import Auto, Backend, Drops, LayerShape

if TYPE_CHECKING:
    import jax

    from moe_lab.nn.pool import Pool, Routing


def _obstacle(layer: LayerShape | None) -> str | None:
    from moe_lab.nn.kernels.grouped_matmul import megablox_obstacle

    return None if layer is None else megablox_obstacle(layer.d_model, layer.block)


def _run(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str, budget: int | None) -> jax.Array:
    from moe_lab.nn.kernels.block_rows import expert_ffn
    from moe_lab.nn.kernels.grouped_matmul import Megablox

    return expert_ffn(Megablox(interpret=False), h_TD, pool, routing, activation, budget)


def beyond_budget(pool: Pool, routing: Routing, budget: int | None) -> jax.Array:
    """Block rows that any grouped matmul has no room for."""
    from moe_lab.nn.kernels.block_rows import rows_beyond_budget

    assert budget is not None
    return rows_beyond_budget(pool, routing, budget)


BACKEND = Backend(
    name="megablox",
    where="TPU",
    how="block rows through the grouped matmul that comes with jax",
    run=_run,
    platform="tpu",
    drops=Drops.BEYOND_BUDGET,
    beyond_budget=beyond_budget,
    obstacle=_obstacle,
    auto=Auto(1, "a TPU, and the shapes suit its grouped matmul kernel"),
)
