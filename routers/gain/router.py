"""Buys compute where it pays: least `predicted loss + price * cost` over all modules, all rungs and the bare trunk.

Heads and training are those of `moe_lab.routing.excess`: whose own text a document is from what was read of it, and a
predicted loss for every rung from the token and what came just before. A rung's predicted loss is what its module is
expected to lose at full width, given whose text this is, and what the token loses by running less of it.

On each module's own text there are rivals, the modules that lose least beside it. What they lose more than it at full
width is predicted from the token's n-grams too: a comment in a program may be better read by a module for prose.

The choice is a joint one, token by token, so a higher price can only make a token cheaper. A cheaper module takes
over where its price is better than what it loses; text that is in doubt gets what is least risky.

Shape letters: B batch, S sequence, E modules, V rivals of a module, M modules that are chosen from, R rungs, Q the
bare trunk and then the rungs.
"""

from __future__ import annotations

from typing import Annotated, Self

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field

from moe_lab import CandidateSpace, Counted, ExcessRouter, Features, LadderConfig, Routing, Seen, route_candidates


class GainConfig(LadderConfig):
    """Settings of the gain router.

    Attributes:
        rivals: modules beside a text's own whose losses are predicted token by token, where there are n-grams.
    """

    rivals: Annotated[int, Field(ge=0)] = 4


class GainRouter(ExcessRouter):
    """Module from the document so far and the token, width from the token, both by their price."""

    Config = GainConfig

    def __init__(self, config: GainConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        modules = len(space.modules)
        # Without n-grams there is nothing to look a rival's loss up by.
        rivals = min(config.rivals, modules - 1) if config.ngrams else 0
        self.rival_EV = Counted(_nearest(self.level_EM[...], rivals))
        self.ngram_rival_loss = Counted(jnp.zeros((self.ngrams.table_rows, modules * rivals)))

    @property
    def multiply_adds(self) -> int:
        """Of its parts, of the levels, and of the rivals' table what is looked up, added, weighed and given out."""
        rivals = (self.ngrams.longest + 2) * self.ngram_rival_loss.shape[1]
        return self.home_evidence.multiply_adds + self.rung_loss.multiply_adds + self.level_EM.size + rivals

    def prepare_widths(self, features: Features) -> None:
        super().prepare_widths(features)
        self.rival_EV[...] = _nearest(self.level_EM[...], self.rival_EV.shape[1])
        if self.rival_EV.size:
            table_REV = self._fitted_rivals(features, self.rival_EV[...], 0)
            self.ngram_rival_loss[...] = table_REV.reshape(self.ngram_rival_loss.shape)

    def joined_config(self, added: int) -> GainConfig:
        """With room for the added modules beside the rivals that each module has."""
        if not self.config.rivals:
            return self.config
        return self.config.model_copy(update={"rivals": max(self.config.rivals, self.rival_EV.shape[1] + added)})

    def join_widths(self, known: Self, features: Features) -> None:
        """An added module is one more rival on the text of every other module."""
        super().join_widths(known, features)
        if not self.rival_EV.size:
            return
        old, kept = known.rival_EV.shape
        added = jnp.arange(old, len(self.space.modules), dtype=jnp.int32)
        added_EV = jnp.broadcast_to(added, (old, len(added)))
        nearest_EV = _nearest(self.level_EM[...], self.rival_EV.shape[1])[old:]
        self.rival_EV[...] = jnp.concatenate([jnp.concatenate([known.rival_EV[...], added_EV], axis=1), nearest_EV])
        table_REV = known.ngram_rival_loss[...].reshape(-1, old, kept)
        table_REV = jnp.concatenate([table_REV, self._fitted_rivals(features, added_EV, 0)], axis=2)
        table_REV = jnp.concatenate([table_REV, self._fitted_rivals(features, nearest_EV, old)], axis=1)
        self.ngram_rival_loss[...] = table_REV.reshape(self.ngram_rival_loss.shape)

    def _fitted_rivals(self, features: Features, rival_EV: jax.Array, first: int) -> jax.Array:
        """[rows of the table, E, V] for some rivals of some modules, from the first one on."""
        own = slice(first, first + len(rival_EV))
        widest_BSM = self.rung_losses(features)[..., -1]
        behind_BSEV = widest_BSM[..., rival_EV] - widest_BSM[..., own, None]
        own_BSE = self.own_text(features)[..., own]
        return self.ngrams.fit(features.tokens_BS, features.segment_ids_BS, behind_BSEV, own_BSE)[1]

    def choose(self, features: Features, seen: Seen) -> Routing:
        own_BSE, excess_BSEQ = self.own_shares(features, seen), self.excess_losses(seen)
        trunk_BS, loss_BSMR = self.predicted_losses(own_BSE, excess_BSEQ, self.rival_losses(seen, own_BSE))
        total_BSMR = loss_BSMR + features.price_B[:, None, None, None] * self.costs()[:, 1:]
        total_BSMR = jnp.where(features.available_BE[:, None, :, None], total_BSMR, jnp.inf)
        total_BSC = jnp.concatenate([trunk_BS[..., None], total_BSMR.reshape(*trunk_BS.shape, -1)], axis=-1)
        candidates = jnp.concatenate([jnp.zeros(1, jnp.int32), self.candidates()[:, 1:].ravel()])
        return route_candidates(self.space, candidates[jnp.argmin(total_BSC, axis=-1)])

    def rival_losses(self, seen: Seen, own_BSE: jax.Array) -> jax.Array:
        """[B, S, M] what the token's n-grams add to what a module loses at full width as a rival."""
        nothing_BSM = jnp.zeros_like(own_BSE)
        if not self.rival_EV.size:
            return nothing_BSM
        more_BSEV = self.ngram_rival_loss[...][seen.ngrams_BSN].sum(-2)
        more_BSEV = more_BSEV.reshape(*own_BSE.shape, -1) * own_BSE[..., None]
        return nothing_BSM.at[..., self.rival_EV[...]].add(more_BSEV)

    def predicted_losses(
        self, own_BSE: jax.Array, excess_BSEQ: jax.Array, rival_BSM: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Of the bare trunk [B, S] and of every rung [B, S, M, R], in nats above the trunk's mean on such text."""
        level_EM = self.level_EM[...]
        # What the trunk loses on a text is known best to the module whose own it is.
        trunk_BSE = jnp.diagonal(level_EM) + excess_BSEQ[..., 0]
        return (own_BSE * trunk_BSE).sum(-1), (own_BSE @ level_EM + rival_BSM)[..., None] + excess_BSEQ[..., 1:]


def _nearest(level_EM: jax.Array, rivals: int) -> jax.Array:
    """int32 [E, V]: the other modules that lose least on each module's own text, the best one first."""
    others_EM = jnp.where(jnp.eye(len(level_EM), dtype=bool), jnp.inf, level_EM)
    return jnp.argsort(others_EM, axis=-1, stable=True)[:, :rivals].astype(jnp.int32)
