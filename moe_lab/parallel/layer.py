"""The routed layer over a mesh: one `shard_map` around dispatch, compute and combine.

With budgets, shapes are static and small, and the layer counts what does not fit before it runs. `overflow: rerun`
then takes the dropless ring for this step, so nothing is ever lost; `count` runs what fits and reports the rest.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from moe_lab.errors import LabError
from moe_lab.nn.backends import BACKENDS
from moe_lab.nn.expert_ffn import LayerOutput, choose_backend, run_backend
from moe_lab.nn.pool import Routing
from moe_lab.parallel.mesh import DATA, EXPERT, REPLICATED, TOKENS
from moe_lab.parallel.pool import PlacedPool, local_pool, specs
from moe_lab.parallel.spec import Transport
from moe_lab.parallel.transport import all_to_all, arrivals, plan_sends, ring, ring_routing

Overflow = Literal["rerun", "count"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardedLayer:
    """How the routed layers of a model run over devices.

    Args:
        mesh: with axes `data` and `expert`.
        transport: `ring` or `all-to-all`.
        budget: block rows per device that the grouped matmuls make room for; None: as many as it takes.
        places: choices per pair of devices that `all-to-all` sends; None: twice as many as an even load would need.
        overflow: `rerun` (nothing is lost) or `count`. What is counted is block rows (budget) and choices (places),
            summed over all devices.
        backend: see `moe_lab.nn.expert_ffn`.
    """

    mesh: Mesh
    transport: Transport = "ring"
    budget: int | None = None
    places: int | None = None
    overflow: Overflow = "rerun"
    backend: str = "auto"

    def __call__(self, h_TD: jax.Array, pool: PlacedPool, routing: Routing, *, activation: str) -> LayerOutput:
        """Sums the routed blocks of every token, wherever the blocks lie.

        Args:
            h_TD: tokens over all devices.
            pool: blocks over `expert`.
            routing: `[T, K]`, by module; over all devices.
            activation: as in `expert_ffn`.
        """
        devices = self.mesh.devices.size
        if h_TD.shape[0] % devices:
            raise LabError(
                f"{h_TD.shape[0]} tokens cannot be shared evenly by {devices} devices; "
                f"make batch_size a multiple of {devices}"
            )
        placed = specs(pool)
        run = jax.shard_map(
            partial(self._on_device, activation=activation),
            mesh=self.mesh,
            in_specs=(TOKENS, placed, TOKENS),
            out_specs=LayerOutput(TOKENS, REPLICATED),  # type: ignore[arg-type]
            check_vma=False,
        )
        return run(h_TD, pool, routing)

    def _even_places(self, choices: int) -> int:
        """Twice what a device sends to each other one when all get the same; never more than there is."""
        return min(choices, 2 * -(-choices // self.mesh.shape[EXPERT]))

    def _on_device(self, h_TD: jax.Array, pool: PlacedPool, routing: Routing, *, activation: str) -> LayerOutput:
        platform = self.mesh.devices.flat[0].platform
        block = pool.blocks.gate.shape[2]
        choice = choose_backend(self.backend, d_model=h_TD.shape[1], block=block, platform=platform, dtype=h_TD.dtype)
        backend = BACKENDS[choice.backend]
        run = partial(run_backend, backend, activation=activation, budget=self.budget)
        may_miss = backend.may_drop(self.budget)
        missing = jnp.zeros((), jnp.int32)
        if self.transport == "ring":
            fast = partial(ring, compute=run)
            arrived = ring_routing(pool, routing) if may_miss else None
        else:
            places = self.places or self._even_places(routing.expert.size)
            fast = partial(all_to_all, compute=run, places=places)
            sends = plan_sends(pool, routing, places)
            arrived = arrivals(pool, routing, sends) if may_miss else None
            missing = missing + sends.dropped
        if arrived is not None:
            missing = missing + backend.rows_beyond_budget(local_pool(pool), arrived, self.budget)
        missing = lax.psum(missing, (DATA, EXPERT))
        if self.overflow == "count" or not (may_miss or self.transport == "all-to-all"):
            return LayerOutput(fast(h_TD, pool, routing), missing)
        dropless = BACKENDS["worklist"] if backend.may_drop(None) else backend
        whole = partial(ring, compute=partial(run_backend, dropless, activation=activation))
        # The count is the same on all devices, so all take the same branch.
        return LayerOutput(lax.cond(missing == 0, fast, whole, h_TD, pool, routing), missing)
