"""Buys width where it pays: least `predicted loss + price * cost`, with the module chosen first.

Heads and training are those of `moe_lab.routing.ladder`: the module from the document so far, a monotone predicted
loss for every rung of it from the token.

Where the module is in doubt, the runner-up runs beside it, weighted by probability: that too is compute bought where
it pays, so it must be likely enough, and its probability times its predicted gain must be worth its price.

Shape letters: B batch, S sequence, K choices, E modules, Q the bare trunk and then the rungs.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field

from moe_lab.nn.pool import Routing
from moe_lab.routing.ladder import LadderConfig, LadderRouter
from moe_lab.routing.router import Features


class GainConfig(LadderConfig):
    """`hedge` is the least probability at which the second-likeliest module runs too; 1 never does."""

    hedge: Annotated[float, Field(gt=0, le=1)] = 0.1


class GainRouter(LadderRouter):
    """Module from the document so far, width from the token."""

    Config = GainConfig

    def route(self, features: Features) -> Routing:
        seen, available_E = self.seen(features), features.available_E
        likely_BSE = self.module_shares(seen, available_E)
        likely_BSK, expert_BSK = jax.lax.top_k(likely_BSE, min(2, len(self.space.modules)))
        excess_BSEQ, bill_EQ = self.excess_losses(seen), features.price * self.costs()
        choice_BSE = jnp.argmin(excess_BSEQ + bill_EQ, axis=-1)
        candidate_BSE = self.candidates()[jnp.arange(choice_BSE.shape[-1]), choice_BSE]
        worth_BSE = likely_BSE * excess_BSEQ[..., 0] >= bill_EQ[:, -1]
        hedged_BSK = (likely_BSK >= self.config.hedge) & jnp.take_along_axis(worth_BSE, expert_BSK, axis=-1)
        runs_BSK = available_E[expert_BSK] & hedged_BSK.at[..., 0].set(True)
        weight_BSK = jnp.where(runs_BSK, likely_BSK, 0.0)
        weight_BSK = weight_BSK / jnp.maximum(weight_BSK.sum(-1, keepdims=True), 1e-9)
        candidate_BSK = jnp.where(runs_BSK, jnp.take_along_axis(candidate_BSE, expert_BSK, axis=-1), 0)
        return Routing(expert_BSK, jnp.asarray(self.space.blocks_C)[candidate_BSK], weight_BSK)
