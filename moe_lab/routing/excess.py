"""Ladder routers that hold a `RungLoss`: they predict what a token loses by running less of a module than all of it.

Shape letters: B batch, S sequence, E modules, Q the bare trunk and then the rungs.
"""

from __future__ import annotations

from typing import Self

import jax
from flax import nnx

from moe_lab.routing.ladder import LadderConfig, LadderRouter, Seen, ngrams_of
from moe_lab.routing.router import Features
from moe_lab.routing.rung_loss import NetworkRungLoss, NgramRungLoss, RungLoss
from moe_lab.routing.space import CandidateSpace


class ExcessRouter(LadderRouter):
    """Module from the document so far, predicted excess loss of every rung from the token. Abstract: no `choose`."""

    def __init__(self, config: LadderConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        self.rung_loss = _rung_loss(config, space, d_model, rngs)

    @property
    def joins(self) -> bool:
        return self.rung_loss.joins

    def prepare_widths(self, features: Features) -> None:
        self.rung_loss.prepare(features, self._measured_excess(features), self.suited(self.own_text(features)))

    def join_widths(self, known: Self, features: Features) -> None:
        suits_BSE = self.suited(self.own_text(features))
        self.rung_loss.join(known.rung_loss, features, self._measured_excess(features), suits_BSE)

    def excess_losses(self, seen: Seen) -> jax.Array:
        """[B, S, E, Q] predicted loss above the module's full width; below zero where less is expected to be better."""
        return self.rung_loss.excess(seen.networks_BSX, seen.ngrams_BSN)

    def width_loss(self, features: Features, seen: Seen, loss_BSEQ: jax.Array, suits_BSE: jax.Array) -> jax.Array:
        excess_BSEQ = loss_BSEQ - loss_BSEQ[..., -1:]
        return self.rung_loss.loss(seen.networks_BSX, features.segment_ids_BS, excess_BSEQ, suits_BSE)

    def _measured_excess(self, features: Features) -> jax.Array:
        loss_BSEQ = self.rung_losses(features)
        return loss_BSEQ - loss_BSEQ[..., -1:]


def _rung_loss(config: LadderConfig, space: CandidateSpace, d_model: int, rngs: nnx.Rngs) -> RungLoss:
    if config.ngrams:
        return NgramRungLoss(ngrams_of(config), space)
    return NetworkRungLoss(space, d_model, config.hidden, rngs=rngs)
