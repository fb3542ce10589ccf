"""Picks the module from evidence that builds up over the document.

One linear head reads the fading mean of the trunk's hidden states and scores the modules. It learns by minimising the
exact expected loss of its own soft choice, since the outcome of every choice is known. The width comes from a small
table, learned beside it: what each module's rungs lose on the tokens that choose that module.

Shape letters: B batch, S sequence, D model width, E modules, R rungs, C candidates.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import PositiveFloat

from moe_lab.config.spec import Spec
from moe_lab.nn.pool import Routing
from moe_lab.routing.router import Features, Metrics, Router, masked_mean, route_candidates, running_mean
from moe_lab.routing.space import CandidateSpace


class DomainConfig(Spec):
    """`half_life` is the number of tokens after which evidence counts half."""

    half_life: PositiveFloat = 64.0


class DomainRouter(Router):
    """Module from the document so far, width from the module's average gains."""

    Config = DomainConfig
    trains_on = "outcomes"

    def __init__(self, config: DomainConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        self.head = nnx.Linear(d_model, len(space.modules), kernel_init=nnx.initializers.zeros, rngs=rngs)
        # Tables of one axis: weight decay, which would pull losses towards zero, is for matrices.
        self.rung_loss_C = nnx.Param(jnp.zeros(len(space)))
        self.trunk_loss_E = nnx.Param(jnp.zeros(len(space.modules)))

    def _scores(self, features: Features) -> jax.Array:
        evidence_BSD = running_mean(features.hidden_BSD, features.segment_ids_BS, self.config.half_life)
        return jnp.where(features.available_E, self.head(evidence_BSD), -jnp.inf)

    def route(self, features: Features) -> Routing:
        module_BS = jnp.argmax(self._scores(features), axis=-1)
        cost_ER = self.space.relative_cost_C[self.space.candidate_ER]
        bill_ER = jnp.where(
            self.space.valid_ER, self.rung_loss_C[...][self.space.candidate_ER] + features.price * cost_ER, jnp.inf
        )
        best_E = jnp.asarray(self.space.candidate_ER)[jnp.arange(bill_ER.shape[0]), jnp.argmin(bill_ER, axis=-1)]
        worth_E = (bill_ER.min(axis=-1) < self.trunk_loss_E[...]) & features.available_E
        return route_candidates(self.space, jnp.where(worth_E, best_E, 0)[module_BS])

    def outcome_loss(self, features: Features) -> tuple[jax.Array, Metrics]:
        outcomes_BSC = features.outcomes_BSC
        assert outcomes_BSC is not None
        choice_BSE = jax.nn.softmax(self._scores(features), axis=-1)
        widest_BSE = outcomes_BSC[..., self.space.widest_E]
        expected = masked_mean((choice_BSE * widest_BSE).sum(-1), features.segment_ids_BS)
        chosen_BSE = jax.lax.stop_gradient(choice_BSE) * (features.segment_ids_BS > 0)[..., None]
        return expected + self._table_loss(outcomes_BSC, chosen_BSE), {"expected_loss": expected}

    def _table_loss(self, outcomes_BSC: jax.Array, chosen_BSE: jax.Array) -> jax.Array:
        """Squared error whose minimum is the mean loss of each rung on the tokens of its module."""
        share_E = chosen_BSE.sum((0, 1)) + 1e-6
        rungs_BSER = outcomes_BSC[..., self.space.candidate_ER]
        mean_ER = jnp.einsum("bse,bser->er", chosen_BSE, rungs_BSER) / share_E[:, None]
        trunk_E = jnp.einsum("bse,bs->e", chosen_BSE, outcomes_BSC[..., 0]) / share_E
        error = jnp.square(self.rung_loss_C[...][self.space.candidate_ER] - mean_ER).mean()
        return error + jnp.square(self.trunk_loss_E[...] - trunk_E).mean()
