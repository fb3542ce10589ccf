"""A uniformly random candidate per token."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from moe_lab import (
    Faded,
    Features,
    Router,
    Routing,
    Spec,
    available_candidates,
    fading_total,
    nothing_faded,
    route_candidates,
)


class RandomConfig(Spec):
    """`seed` makes the draw repeatable."""

    seed: int = 0


class RandomRouter(Router):
    """Draws among the candidates that are available; a draw depends on the token and its place in its document."""

    Config = RandomConfig

    def init_state(self, rows: int) -> Faded:
        return nothing_faded(rows, 1)

    def step(self, state: Faded | None, features: Features) -> tuple[Routing, Faded | None]:
        ones_BS1 = jnp.ones((*features.segment_ids_BS.shape, 1))
        place_BS1, state = fading_total(ones_BS1, features.segment_ids_BS, math.inf, state)
        key = jax.random.key(self.config.seed)

        def draw(place: jax.Array, token: jax.Array) -> jax.Array:
            own = jax.random.fold_in(jax.random.fold_in(key, place), token)
            return jax.random.uniform(own, (len(self.space),))

        noise_BSC = jax.vmap(jax.vmap(draw))(place_BS1[..., 0].astype(jnp.uint32), features.tokens_BS)
        allowed_BC = available_candidates(self.space, features.available_BE)
        allowed_BSC = jnp.where(allowed_BC[:, None], noise_BSC, -1.0)
        return route_candidates(self.space, jnp.argmax(allowed_BSC, axis=-1)), state
