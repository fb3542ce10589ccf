"""Every token to one module at one width."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from moe_lab import (
    CandidateSpace,
    Features,
    LabError,
    Router,
    Routing,
    Spec,
    available_candidates,
    did_you_mean,
    route_candidates,
)


class FixedConfig(Spec):
    """`candidate` is `trunk` or `owner/name:width`."""

    candidate: str = "trunk"


class FixedRouter(Router):
    """Sends everything one way; where that way is opted out, to the bare trunk."""

    Config = FixedConfig

    def __init__(self, config: FixedConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        if config.candidate not in space.names:
            hint = did_you_mean(config.candidate, space.names)
            raise LabError(f'router fixed: candidate "{config.candidate}" is not in the composition.{hint}')
        self.candidate = space.names.index(config.candidate)

    def init_state(self, rows: int) -> tuple[()]:
        return ()

    def step(self, state: tuple[()] | None, features: Features) -> tuple[Routing, tuple[()] | None]:
        allowed_B = available_candidates(self.space, features.available_BE)[:, self.candidate]
        choice_B1 = jnp.where(allowed_B, self.candidate, 0)[:, None]
        return route_candidates(self.space, jnp.broadcast_to(choice_B1, features.segment_ids_BS.shape)), state
