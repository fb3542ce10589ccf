"""Block rows through the Hopper kernels that come with jax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.nn.backend import Auto, Backend, Drops, LayerShape
from moe_lab.nn.backends.megablox import beyond_budget

if TYPE_CHECKING:
    import jax

    from moe_lab.nn.pool import Pool, Routing


def _obstacle(layer: LayerShape | None) -> str | None:
    from moe_lab.nn.kernels.grouped_matmul import probe_gpu

    return probe_gpu()


def _run(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str, budget: int | None) -> jax.Array:
    from moe_lab.nn.kernels.block_rows import expert_ffn
    from moe_lab.nn.kernels.grouped_matmul import MosaicGpu

    return expert_ffn(MosaicGpu(), h_TD, pool, routing, activation, budget)


BACKEND = Backend(
    name="mosaic-gpu",
    where="Hopper GPUs",
    how="block rows through jax's Mosaic kernels",
    run=_run,
    platform="gpu",
    drops=Drops.BEYOND_BUDGET,
    beyond_budget=beyond_budget,
    obstacle=_obstacle,
    auto=Auto(1, "a GPU on which jax's grouped matmul gave the right numbers just now"),
)
