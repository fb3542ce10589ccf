"""Widens when unsure: a chain of checks along the chosen module's ladder, each of which stops or goes on.

Check q sits between rung q and the next (rung 0 is the bare trunk) and predicts one number from the token: the price
up to which it is worth to go on,

    s_q = max_{j > q} E[loss_q - loss_j] / (cost_j - cost_q).

Going on from q is right at price p exactly if some wider rung gains more than p times what it costs more, that is if
p < s_q: the deferral rule of Jitkrittum et al. 2023 (arXiv 2307.02764, expected gain against cost) for a ladder of
any shape. One number per check serves every price, and a higher price can only stop a token earlier.

The checks learn by stopping: a softened chain stops at each rung with a known probability, so the expectation of
`loss + price * cost` is exact. The module is chosen as in `moe_lab.routing.ladder`.

Shape letters: B batch, S sequence, E modules, R checks, Q the bare trunk and then the rungs.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import PositiveFloat, PositiveInt

from moe_lab import (
    CandidateSpace,
    Features,
    LadderConfig,
    LadderRouter,
    Routing,
    Seen,
    WidthNetwork,
    masked_mean,
    route_candidates,
)


class CascadeConfig(LadderConfig):
    """Settings of the cascade.

    Attributes:
        softness: nats; softens the chain that is trained, not the one that is run.
        prices: range drawn in training, in nats per token for the dearest candidate.
        prices_per_step: how many prices each step trains at.
    """

    softness: PositiveFloat = 0.05
    prices: tuple[PositiveFloat, PositiveFloat] = (0.003, 1.0)
    prices_per_step: PositiveInt = 4


class CascadeRouter(LadderRouter):
    """Module from the document so far; each check from the token."""

    Config = CascadeConfig

    def __init__(self, config: CascadeConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        self.checks = WidthNetwork(space, d_model, config.hidden, 0.0, rngs=rngs)

    def scores(self, seen: Seen) -> jax.Array:
        """[B, S, E, R] the price up to which each check goes on."""
        return self.checks(seen.networks_BSX)

    def choose(self, features: Features, seen: Seen) -> Routing:
        goes_on_BSER = (self.scores(seen) > features.price_B[:, None, None, None]) & self.space.valid_ER
        rung_BSE = jnp.cumprod(goes_on_BSER, axis=-1).sum(-1)
        candidate_BSE = self.candidates()[jnp.arange(rung_BSE.shape[-1]), rung_BSE]
        likely_BSE = self.module_shares(self.own_shares(features, seen), features.available_BE)
        module_BS1 = jnp.argmax(likely_BSE, axis=-1)[..., None]
        allowed_BSE = jnp.where(features.available_BE[:, None], candidate_BSE, 0)
        return route_candidates(self.space, jnp.take_along_axis(allowed_BSE, module_BS1, axis=-1)[..., 0])

    def policy(self, seen: Seen, price: jax.Array) -> jax.Array:
        """[B, S, E, Q] how likely the softened chain stops there.

        What is at stake in a check, in nats, is its score's lead over the price times all that may still be spent.
        """
        costs_EQ = self.costs()
        stake_BSER = (self.scores(seen) - price) * (costs_EQ[:, -1:] - costs_EQ[:, :-1])
        goes_on_BSER = jax.nn.sigmoid(stake_BSER / self.config.softness) * self.space.valid_ER
        reached = jnp.cumprod(goes_on_BSER, axis=-1)
        sure = jnp.ones_like(reached[..., :1])
        return jnp.concatenate([sure, reached], -1) * jnp.concatenate([1 - goes_on_BSER, sure], -1)

    def width_loss(self, features: Features, seen: Seen, loss_BSEQ: jax.Array, suits_BSE: jax.Array) -> jax.Array:
        """The expectation of loss + price * cost, exact, averaged over prices, each module on text that suits it."""
        costs_EQ = self.costs()

        def expected_total(price: jax.Array) -> jax.Array:
            total_BSE = (self.policy(seen, price) * (loss_BSEQ + price * costs_EQ)).sum(-1)
            return masked_mean((suits_BSE * total_BSE).sum(-1), features.segment_ids_BS)

        return jax.vmap(expected_total)(self._prices(features.price_B[0])).mean()

    def _prices(self, draw: jax.Array) -> jax.Array:
        """Log-uniform prices; `draw` in [0, 1) shifts an even grid, so every step covers the whole range."""
        low, high = (math.log(price) for price in self.config.prices)
        place = (jnp.arange(self.config.prices_per_step) + draw) / self.config.prices_per_step
        return jnp.exp(low + (high - low) * place)
