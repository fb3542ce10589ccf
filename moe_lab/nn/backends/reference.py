"""The definition, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.nn.backend import Backend

if TYPE_CHECKING:
    import jax

    from moe_lab.nn.pool import Pool, Routing


def _run(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str, budget: int | None) -> jax.Array:
    from moe_lab.nn.kernels.reference import expert_ffn

    return expert_ffn(h_TD, pool, routing, activation)


BACKEND = Backend(name="reference", where="tests", how="every block on every token, masked", run=_run)
