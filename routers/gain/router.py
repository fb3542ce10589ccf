"""Buys compute where it pays: least `predicted loss + price * cost` over all modules, all rungs and the bare trunk.

Heads and training are those of `moe_lab.routing.ladder`: whose own text a document is from what was read of it, and a
monotone predicted loss for every rung from the token. A rung's predicted loss is what its module is expected to lose
at full width, given whose text this is, and what the token loses by running less of it.

The choice is a joint one, token by token, so a higher price can only make a token cheaper. A cheaper module takes
over where its price is better than what it loses; text that is in doubt gets what is least risky.

Shape letters: B batch, S sequence, E modules, R rungs, Q the bare trunk and then the rungs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe_lab.nn.pool import Routing
from moe_lab.routing.ladder import LadderConfig, LadderRouter
from moe_lab.routing.router import Features, route_candidates


class GainConfig(LadderConfig):
    """Nothing beyond what every ladder router has."""


class GainRouter(LadderRouter):
    """Module from the document so far, width from the token, both by their price."""

    Config = GainConfig

    def route(self, features: Features) -> Routing:
        seen = self.seen(features)
        trunk_BS, loss_BSER = self.predicted_losses(self.own_shares(features, seen), self.excess_losses(seen))
        bill_BSER = loss_BSER + features.price * self.costs()[:, 1:]
        bill_BSER = jnp.where(features.available_E[:, None], bill_BSER, jnp.inf)
        bills = jnp.concatenate([trunk_BS[..., None], bill_BSER.reshape(*trunk_BS.shape, -1)], axis=-1)
        candidates = jnp.concatenate([jnp.zeros(1, jnp.int32), self.candidates()[:, 1:].ravel()])
        return route_candidates(self.space, candidates[jnp.argmin(bills, axis=-1)])

    def predicted_losses(self, own_BSE: jax.Array, excess_BSEQ: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the bare trunk [B, S] and of every rung [B, S, E, R], in nats above the trunk's mean on such text."""
        level_EM = self.levels()
        # What the trunk loses on a text is known best to the module whose own it is.
        trunk_BSE = jnp.diagonal(level_EM) + excess_BSEQ[..., 0]
        return (own_BSE * trunk_BSE).sum(-1), (own_BSE @ level_EM)[..., None] + excess_BSEQ[..., 1:]
