"""A routed layer of any kind of expert, where everything is on one device.

Shape letters: T tokens, D model width.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moe_lab.experts.kind import ExpertKind
from moe_lab.nn.expert_ffn import LayerOutput
from moe_lab.nn.pool import Pool, Routing


@dataclasses.dataclass(frozen=True)
class KindLayer:
    """Runs what the kind itself computes; nothing is left out."""

    kind: ExpertKind

    def __call__(self, h_TD: jax.Array, pool: Pool, routing: Routing, *, activation: str) -> LayerOutput:
        """Runs one layer."""
        return LayerOutput(self.kind.run(h_TD, pool, routing, activation=activation), jnp.zeros((), jnp.int32))
