"""Buys width where it pays: least `predicted loss + price * cost`, with the module chosen first.

Two questions, two time scales. *Which module* is answered by evidence that builds up over the document; *how much of
it* by the token itself. Both are heads on the trunk's hidden state. The predicted loss of a ladder is monotone by
construction: each rung, the bare trunk below it included, is predicted to lose at least what the next wider one does.

Where the module is in doubt, the runner-up runs beside it, weighted by probability: that too is compute bought where
it pays, so it must be likely enough, and its probability times its predicted gain must be worth its price.

Training minimises the decision, not the prediction: the outcome of every candidate is known, so the expectation of
`loss + price * cost` under the router's own softmax policy is exact, and prices are drawn log-uniformly so that one
trained router serves every budget. The module head learns by cross-entropy to the modules that lose least in the
token's surroundings: one token's losses are too noisy to name its document's module.

Shape letters: B batch, S sequence, D model width, H hidden, E modules, R rungs, C candidates.
"""

from __future__ import annotations

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field, PositiveFloat, PositiveInt

from moe_lab.config.spec import Spec
from moe_lab.nn.pool import Routing
from moe_lab.routing.router import (
    Features,
    Metrics,
    Router,
    masked_mean,
    running_mean,
    surrounding_mean,
)
from moe_lab.routing.space import CandidateSpace


class GainConfig(Spec):
    """Settings of the gain router.

    Attributes:
        half_life: tokens after which evidence counts half.
        hidden: width of the hidden layer of each head.
        temperature: nats; softens the policy that is trained, not the one that is run.
        prices: range drawn in training, in nats per token for the dearest candidate.
        prices_per_step: how many prices each step trains at.
        hedge: least probability at which the second-likeliest module runs too; 1 never does.
    """

    half_life: PositiveFloat = 64.0
    hidden: PositiveInt = 64
    temperature: PositiveFloat = 0.05
    prices: tuple[PositiveFloat, PositiveFloat] = (0.003, 1.0)
    prices_per_step: PositiveInt = 4
    hedge: Annotated[float, Field(gt=0, le=1)] = 0.1


class GainRouter(Router):
    """Module from the document so far, width from the token."""

    Config = GainConfig
    trains_on = "outcomes"

    def __init__(self, config: GainConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        modules, rungs = space.candidate_ER.shape
        zeros = nnx.initializers.zeros
        self.module_hidden = nnx.Linear(2 * d_model, config.hidden, rngs=rngs)
        self.module_head = nnx.Linear(config.hidden, modules, kernel_init=zeros, rngs=rngs)
        self.width_hidden = nnx.Linear(2 * d_model, config.hidden, rngs=rngs)
        bias = nnx.initializers.constant(-1.5)
        self.width_head = nnx.Linear(config.hidden, modules * rungs, kernel_init=zeros, bias_init=bias, rngs=rngs)

    def _seen(self, features: Features) -> jax.Array:
        """What both heads read: the token, and the document so far."""
        evidence = running_mean(features.hidden_BSD, features.segment_ids_BS, self.config.half_life)
        return jnp.concatenate([features.hidden_BSD, evidence], axis=-1)

    def _module_scores(self, seen: jax.Array, available_E: jax.Array) -> jax.Array:
        scores_BSE = self.module_head(nnx.gelu(self.module_hidden(seen)))
        return jnp.where(available_E, scores_BSE, -jnp.inf)

    def _excess_losses(self, seen: jax.Array) -> jax.Array:
        """[B, S, E, 1 + R] predicted loss above the module's full width: the bare trunk first, then each rung."""
        step = jax.nn.softplus(self.width_head(nnx.gelu(self.width_hidden(seen))))
        step_BSER = step.reshape(*seen.shape[:2], *self.space.candidate_ER.shape)
        # A repeated rung at the end of a short ladder adds no step.
        step_BSER = step_BSER * self.space.valid_ER
        above = jnp.flip(jnp.cumsum(jnp.flip(step_BSER, -1), -1), -1)
        return jnp.concatenate([above, jnp.zeros_like(above[..., :1])], axis=-1)

    def _costs(self) -> jax.Array:
        """[E, 1 + R] relative cost: the bare trunk first, then each rung."""
        rungs = self.space.relative_cost_C[self.space.candidate_ER]
        return jnp.concatenate([jnp.zeros((rungs.shape[0], 1)), jnp.asarray(rungs)], axis=-1)

    def _candidates(self) -> jax.Array:
        """[E, 1 + R] candidate indices in the same order."""
        index = jnp.asarray(self.space.candidate_ER)
        return jnp.concatenate([jnp.zeros((index.shape[0], 1), index.dtype), index], axis=-1)

    def route(self, features: Features) -> Routing:
        seen, available_E = self._seen(features), features.available_E
        likely_BSE = jnp.where(available_E, jax.nn.softmax(self._module_scores(seen, available_E)), 0.0)
        likely_BSK, expert_BSK = jax.lax.top_k(likely_BSE, min(2, len(self.space.modules)))
        excess_BSEQ, bill_EQ = self._excess_losses(seen), features.price * self._costs()
        choice_BSE = jnp.argmin(excess_BSEQ + bill_EQ, axis=-1)
        candidate_BSE = self._candidates()[jnp.arange(choice_BSE.shape[-1]), choice_BSE]
        worth_BSE = likely_BSE * excess_BSEQ[..., 0] >= bill_EQ[:, -1]
        hedged_BSK = (likely_BSK >= self.config.hedge) & jnp.take_along_axis(worth_BSE, expert_BSK, axis=-1)
        runs_BSK = available_E[expert_BSK] & hedged_BSK.at[..., 0].set(True)
        weight_BSK = jnp.where(runs_BSK, likely_BSK, 0.0)
        weight_BSK = weight_BSK / jnp.maximum(weight_BSK.sum(-1, keepdims=True), 1e-9)
        candidate_BSK = jnp.where(runs_BSK, jnp.take_along_axis(candidate_BSE, expert_BSK, axis=-1), 0)
        return Routing(expert_BSK, jnp.asarray(self.space.blocks_C)[candidate_BSK], weight_BSK)

    def outcome_loss(self, features: Features) -> tuple[jax.Array, Metrics]:
        assert features.outcomes_BSC is not None
        seen, segment_ids_BS = self._seen(features), features.segment_ids_BS
        scores_BSE = self._module_scores(seen, features.available_E)
        loss_BSEQ = features.outcomes_BSC[..., self._candidates()]
        around_BSE = surrounding_mean(loss_BSEQ[..., -1], segment_ids_BS, 2 * self.config.half_life)
        target_BSE = jax.nn.softmax(-around_BSE / self.config.temperature)
        width_loss = self._width_loss(seen, loss_BSEQ, target_BSE, features)
        module_loss = masked_mean(-(target_BSE * jax.nn.log_softmax(scores_BSE)).sum(-1), segment_ids_BS)
        return module_loss + width_loss, {"module_loss": module_loss, "expected_bill": width_loss}

    def _width_loss(
        self, seen: jax.Array, loss_BSEQ: jax.Array, module_BSE: jax.Array, features: Features
    ) -> jax.Array:
        """The expectation of loss + price * cost, exact, averaged over prices, each module on text that suits it."""
        excess_BSEQ, costs = self._excess_losses(seen), self._costs()

        # A ladder shorter than the longest repeats its last rung, which must not count twice.
        repeated_EQ = jnp.where(jnp.pad(self.space.valid_ER, ((0, 0), (1, 0)), constant_values=True), 0.0, jnp.inf)

        def expected_bill(price: jax.Array) -> jax.Array:
            width = jax.nn.softmax(-(excess_BSEQ + price * costs + repeated_EQ) / self.config.temperature)
            bill_BSE = (width * (loss_BSEQ + price * costs)).sum(-1)
            return masked_mean((module_BSE * bill_BSE).sum(-1), features.segment_ids_BS)

        return jax.vmap(expected_bill)(self._prices(features.price)).mean()

    def _prices(self, draw: jax.Array) -> jax.Array:
        """Log-uniform prices; `draw` in [0, 1) shifts an even grid, so every step covers the whole range."""
        low, high = (math.log(price) for price in self.config.prices)
        place = (jnp.arange(self.config.prices_per_step) + draw) / self.config.prices_per_step
        return jnp.exp(low + (high - low) * place)
