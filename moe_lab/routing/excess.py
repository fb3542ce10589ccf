"""Ladder routers that predict what a token loses by running less of a module than all of it.

The prediction is a mean, so the rung with the least predicted loss + price * cost is right at every price. It is
looked up: each of the token's n-grams says how much more or less than on average is lost, rung by rung. That follows
from the outcome table by counting. Without n-grams a small network on the hidden states predicts it, by squared error.

Shape letters: B batch, S sequence, T tokens, E modules, R rungs, Q the bare trunk and then the rungs.
"""

from __future__ import annotations

from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_lab.routing.ladder import LadderConfig, LadderRouter, WidthNetwork
from moe_lab.routing.ngrams import fit_ngrams
from moe_lab.routing.router import Counted, Features, masked_mean
from moe_lab.routing.space import CandidateSpace


class ExcessRouter(LadderRouter):
    """Module from the document so far, predicted excess loss of every rung from the token. A subclass has `route`."""

    def __init__(self, config: LadderConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        if config.ngrams:
            modules, rungs = space.candidate_ER.shape
            # Until something is counted width is worth a little, in proportion.
            costs_EQ = self.costs()
            self.mean_excess_ER = Counted(0.25 * (1 - costs_EQ[:, :-1] / costs_EQ[:, -1:]))
            self.ngram_excess = Counted(jnp.zeros((config.ngrams * config.buckets, modules * rungs)))
        else:
            self.width = WidthNetwork(config, space, d_model, -1.5, rngs)

    @property
    def multiply_adds(self) -> int:
        """Of the table of excess losses what is looked up and added."""
        entries = super().multiply_adds
        if not self.config.ngrams:
            return entries
        return entries - self.ngram_excess.size + self.config.ngrams * self.ngram_excess.shape[1]

    @property
    def joins(self) -> bool:
        """Tables have a column for each module; a network that all modules share would have to be trained again."""
        return self.config.ngrams > 0

    def prepare(self, features: Features) -> None:
        super().prepare(features)
        if self.config.ngrams:
            self.mean_excess_ER[...], table_REC = self._fitted_excess(features, 0)
            self.ngram_excess[...] = table_REC.reshape(self.ngram_excess.shape)

    def join(self, known: Self, features: Features) -> None:
        super().join(known, features)
        old, rungs = known.mean_excess_ER.shape
        # On a longer ladder the last rung repeats, and nothing is lost by running less than it.
        repeated = ((0, 0), (0, self.mean_excess_ER.shape[1] - rungs))
        mean_ER = jnp.pad(known.mean_excess_ER[...], repeated)
        table_REC = jnp.pad(known.ngram_excess[...].reshape(-1, old, rungs), ((0, 0), *repeated))
        more_mean_ER, more_REC = self._fitted_excess(features, old)
        self.mean_excess_ER[...] = jnp.concatenate([mean_ER, more_mean_ER])
        self.ngram_excess[...] = jnp.concatenate([table_REC, more_REC], axis=1).reshape(self.ngram_excess.shape)

    def _fitted_excess(self, features: Features, first: int) -> tuple[jax.Array, jax.Array]:
        """Mean excess losses of the modules from the first one on, and what n-grams add to them, as `fitted`."""
        loss_BSEQ = self.rung_losses(features)[..., first:, :]
        excess_BSER = (loss_BSEQ - loss_BSEQ[..., -1:])[..., :-1]
        return self.fitted(features, excess_BSER, self.suited(self.own_text(features))[..., first:])

    def fitted(self, features: Features, values_BSEC: jax.Array, weight_BSE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Means [E, C] of some values of some modules, and what each n-gram adds to them [rows of the table, E, C]."""
        counted_BS, size = np.asarray(features.segment_ids_BS) > 0, self.config.ngrams * self.config.buckets
        rows_TN = np.asarray(self.rows(features.tokens_BS, features.segment_ids_BS))[counted_BS]
        values_TEC, weight_TE = np.asarray(values_BSEC)[counted_BS], np.asarray(weight_BSE)[counted_BS]
        fits = [
            fit_ngrams(rows_TN, values_TEC[:, e], weight_TE[:, e], size, self.config.shrinkage)
            for e in range(weight_TE.shape[1])
        ]
        mean_EC, table_REC = np.stack([mean for mean, _ in fits]), np.stack([added for _, added in fits], axis=1)
        return jnp.asarray(mean_EC, jnp.float32), jnp.asarray(table_REC, jnp.float32)

    def excess_losses(self, features: Features, seen: jax.Array) -> jax.Array:
        """[B, S, E, Q] predicted loss above the module's full width; below zero where less is expected to be better."""
        if self.config.ngrams:
            more_BSER = self.ngram_excess[...][self.rows(features.tokens_BS, features.segment_ids_BS)].sum(-2)
            excess_BSER = self.mean_excess_ER[...] + more_BSER.reshape(*seen.shape[:2], *self.mean_excess_ER.shape)
        else:
            # A repeated rung at the end of a short ladder adds no step.
            step_BSER = jax.nn.softplus(self.width(seen)) * self.space.valid_ER
            excess_BSER = jnp.flip(jnp.cumsum(jnp.flip(step_BSER, -1), -1), -1)
        return jnp.concatenate([excess_BSER, jnp.zeros_like(excess_BSER[..., :1])], axis=-1)

    def width_loss(self, features: Features, seen: jax.Array, loss_BSEQ: jax.Array, suits_BSE: jax.Array) -> jax.Array:
        """Squared error of the predicted excess, each module on the tokens that it suits. What is counted has none."""
        if self.config.ngrams:
            return jnp.float32(0)
        excess_BSEQ = loss_BSEQ - loss_BSEQ[..., -1:]
        error_BSE = jnp.square(self.excess_losses(features, seen) - excess_BSEQ).sum(-1)
        return masked_mean((suits_BSE * error_BSE).sum(-1), features.segment_ids_BS)
