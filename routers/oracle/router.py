"""The best candidate per token, looked up in the measured outcomes of these very tokens."""

from __future__ import annotations

import jax.numpy as jnp

from moe_lab import Features, Router, Routing, Spec, available_candidates, route_candidates


class OracleConfig(Spec):
    """The oracle has nothing to set."""


class OracleRouter(Router):
    """Least `loss + price * cost`; ties go to the cheaper candidate, because cheaper ones come first in a ladder."""

    Config = OracleConfig
    causal = False
    needs_outcomes = True

    def route(self, features: Features) -> Routing:
        assert features.outcomes_BSC is not None, "the oracle needs outcomes"
        total_BSC = features.outcomes_BSC + features.price_B[:, None, None] * self.space.relative_cost_C
        allowed_BC = available_candidates(self.space, features.available_BE)
        total_BSC = jnp.where(allowed_BC[:, None], total_BSC, jnp.inf)
        return route_candidates(self.space, jnp.argmin(total_BSC, axis=-1))
