"""Work in proportion to the blocks routed, through XLA, on any platform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.nn.backend import Auto, Backend

if TYPE_CHECKING:
    import jax

    from moe_lab.nn.pool import Pool, Routing


def _run(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str, budget: int | None) -> jax.Array:
    from moe_lab.nn.kernels.worklist import expert_ffn

    return expert_ffn(h_TD, pool, routing, activation)


BACKEND = Backend(
    name="worklist",
    where="anywhere",
    how="loops over slabs and tiles, through XLA",
    run=_run,
    auto=Auto(0, "on {platform} it does only the routed work and drops nothing"),
)
