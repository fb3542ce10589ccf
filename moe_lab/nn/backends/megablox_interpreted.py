"""`megablox` where there is no TPU: jax interprets its kernel."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from moe_lab.nn.backend import no_obstacle
from moe_lab.nn.backends import megablox

if TYPE_CHECKING:
    import jax

    from moe_lab.nn.pool import Pool, Routing


def _run(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str, budget: int | None) -> jax.Array:
    from moe_lab.nn.kernels.block_rows import expert_ffn
    from moe_lab.nn.kernels.grouped_matmul import Megablox

    return expert_ffn(Megablox(interpret=True), h_TD, pool, routing, activation, budget)


BACKEND = dataclasses.replace(
    megablox.BACKEND,
    name="megablox-interpreted",
    where="tests",
    how="the kernel of megablox, interpreted",
    run=_run,
    platform=None,
    obstacle=no_obstacle,
    auto=None,
    tests_only=True,
)
