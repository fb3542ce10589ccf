"""Spends a fixed budget on the best upgrades of a batch, whichever tokens they are in.

Heads and training are those of `moe_lab.routing.excess`, as in the gain router: module from the document so far,
predicted loss of every rung from the token. The gain of a rung counts as much as its module is likely. `upgrades.py`
then buys upgrades in the order of gain per cost until the budget is spent or the price is no longer paid.

Which tokens get the budget depends on all tokens of the batch, so the router is not causal.

Shape letters: B batch, S sequence, N = B * S tokens, E modules, Q the bare trunk and then the rungs, C candidates.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from moe_lab import CandidateSpace, ExcessRouter, Features, LadderConfig, Routing, Seen, route_candidates

from .upgrades import best_upgrades


class BudgetConfig(LadderConfig):
    """`budget` is the mean cost per token that a batch may have, as a share of the dearest candidate's."""

    budget: Annotated[float, Field(gt=0, le=1)] = 0.25


class BudgetRouter(ExcessRouter):
    """Module from the document so far, width from what the batch can afford."""

    Config = BudgetConfig
    causal = False

    @property
    def budget(self) -> float:
        return self.config.budget

    def choose(self, features: Features, seen: Seen) -> Routing:
        likely_BSE = self.module_shares(self.own_shares(features, seen), features.available_BE)
        module_BS = jnp.argmax(likely_BSE, axis=-1)
        excess_BSQ = jnp.take_along_axis(self.excess_losses(seen), module_BS[..., None, None], axis=2)[:, :, 0]
        gain_BSQ = likely_BSE.max(-1, keepdims=True) * (excess_BSQ[..., :1] - excess_BSQ)
        counted_BS = features.segment_ids_BS > 0
        # What gains nothing is never bought: padding, and tokens whose modules are all opted out.
        gain_NQ = jnp.where(counted_BS[..., None], gain_BSQ, 0.0).reshape(-1, gain_BSQ.shape[-1])
        candidate_NQ = self.candidates()[module_BS.ravel()]
        unit_C = cost_units(self.space)
        total = affordable(self.config.budget, int(unit_C.max()), counted_BS)
        price_N1 = jnp.repeat(features.price_B, module_BS.shape[1])[:, None] / unit_C.max()
        rung_N = best_upgrades(gain_NQ, jnp.asarray(unit_C)[candidate_NQ], price_N1, total)
        candidate_N = jnp.take_along_axis(candidate_NQ, rung_N[:, None], axis=-1)[:, 0]
        return route_candidates(self.space, candidate_N.reshape(module_BS.shape))


def cost_units(space: CandidateSpace) -> np.ndarray:
    """int32 [C]: the cost of every candidate in whole units, the largest in which all costs are whole."""
    return (space.cost_C // max(1, math.gcd(*map(int, space.cost_C)))).astype(np.int32)


def affordable(budget: float, dearest: int, counted_BS: jax.Array) -> jax.Array:
    """What the counted tokens may spend together, in units; int32.

    A token's share is rounded down to 1/1024 of a unit, so that the sum is exact in whole numbers.
    """
    assert dearest * counted_BS.size < 2**31, f"{counted_BS.size} tokens of {dearest} units each overflow an int32"
    whole, part = divmod(math.floor(Fraction(budget) * dearest * 1024), 1024)
    tokens = counted_BS.sum(dtype=jnp.int32)
    return tokens * whole + tokens * part // 1024
