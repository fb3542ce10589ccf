"""A uniformly random candidate per token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe_lab import Features, Router, Routing, Spec, available_candidates, route_candidates


class RandomConfig(Spec):
    """`seed` makes the draw repeatable."""

    seed: int = 0


class RandomRouter(Router):
    """Draws among the candidates that are available; the draw depends on the place in the batch alone."""

    Config = RandomConfig

    def route(self, features: Features) -> Routing:
        shape = (*features.segment_ids_BS.shape, len(self.space))
        noise_BSC = jax.random.uniform(jax.random.key(self.config.seed), shape)
        allowed_C = available_candidates(self.space, features.available_E)
        return route_candidates(self.space, jnp.argmax(jnp.where(allowed_C, noise_BSC, -1.0), axis=-1))
