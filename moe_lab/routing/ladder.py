"""What routers share that learn from outcome tables which module suits a document, and what width is worth to a token.

Two questions, two time scales. *Which module* is answered by evidence that builds up over the document; *how much of
it* by the token itself. Both are small networks that read the token's hidden state beside the fading mean of the
document so far.

Training minimises the decision, not the prediction: the outcome of every candidate is known, so the expectation of
`loss + price * cost` under the router's own softened policy is exact, and prices are drawn log-uniformly so that one
trained router serves every budget. The module head learns by cross-entropy to the modules that lose least in the
token's surroundings: one token's losses are too noisy to name its document's module.

Shape letters: B batch, S sequence, D model width, H hidden, E modules, R rungs, Q the bare trunk and then the rungs,
C candidates.
"""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import PositiveFloat, PositiveInt

from moe_lab.config.spec import Spec
from moe_lab.routing.router import Features, Metrics, Router, masked_mean, running_mean, surrounding_mean
from moe_lab.routing.space import CandidateSpace


class LadderConfig(Spec):
    """Settings of every ladder router.

    Attributes:
        half_life: tokens after which evidence counts half.
        hidden: width of the hidden layer of each head.
        temperature: nats; softens the policy that is trained, not the one that is run.
        prices: range drawn in training, in nats per token for the dearest candidate.
        prices_per_step: how many prices each step trains at.
    """

    half_life: PositiveFloat = 64.0
    hidden: PositiveInt = 64
    temperature: PositiveFloat = 0.05
    prices: tuple[PositiveFloat, PositiveFloat] = (0.003, 1.0)
    prices_per_step: PositiveInt = 4


class LadderRouter(Router):
    """Module from the document so far, a score for every rung from the token.

    A subclass defines `route`. Unless it defines another `policy` too, its scores are steps of predicted loss.
    """

    Config = LadderConfig
    trains_on = "outcomes"
    first_score: ClassVar[float] = -1.5
    """What the width head says of every rung before it has learned anything."""

    def __init__(self, config: LadderConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        modules, rungs = space.candidate_ER.shape
        zeros = nnx.initializers.zeros
        self.module_hidden = nnx.Linear(2 * d_model, config.hidden, rngs=rngs)
        self.module_head = nnx.Linear(config.hidden, modules, kernel_init=zeros, rngs=rngs)
        self.width_hidden = nnx.Linear(2 * d_model, config.hidden, rngs=rngs)
        bias = nnx.initializers.constant(self.first_score)
        self.width_head = nnx.Linear(config.hidden, modules * rungs, kernel_init=zeros, bias_init=bias, rngs=rngs)

    def seen(self, features: Features) -> jax.Array:
        """[B, S, 2D], what both heads read: the token, and the document so far."""
        evidence = running_mean(features.hidden_BSD, features.segment_ids_BS, self.config.half_life)
        return jnp.concatenate([features.hidden_BSD, evidence], axis=-1)

    def module_scores(self, seen: jax.Array, available_E: jax.Array) -> jax.Array:
        """[B, S, E] logits, -inf for what is opted out."""
        scores_BSE = self.module_head(nnx.gelu(self.module_hidden(seen)))
        return jnp.where(available_E, scores_BSE, -jnp.inf)

    def module_shares(self, seen: jax.Array, available_E: jax.Array) -> jax.Array:
        """[B, S, E] probabilities; all 0 where no module is left."""
        return jnp.where(available_E, jax.nn.softmax(self.module_scores(seen, available_E)), 0.0)

    def width_scores(self, seen: jax.Array) -> jax.Array:
        """[B, S, E, R] one number for the step onto each rung."""
        scores = self.width_head(nnx.gelu(self.width_hidden(seen)))
        return scores.reshape(*seen.shape[:2], *self.space.candidate_ER.shape)

    def excess_losses(self, seen: jax.Array) -> jax.Array:
        """[B, S, E, Q] predicted loss above the module's full width, monotone by construction.

        Each rung, the bare trunk below them included, is predicted to lose at least what the next wider one does.
        """
        step_BSER = jax.nn.softplus(self.width_scores(seen))
        # A repeated rung at the end of a short ladder adds no step.
        step_BSER = step_BSER * self.space.valid_ER
        above = jnp.flip(jnp.cumsum(jnp.flip(step_BSER, -1), -1), -1)
        return jnp.concatenate([above, jnp.zeros_like(above[..., :1])], axis=-1)

    def costs(self) -> jax.Array:
        """[E, Q] relative cost."""
        rungs = self.space.relative_cost_C[self.space.candidate_ER]
        return jnp.concatenate([jnp.zeros((rungs.shape[0], 1)), jnp.asarray(rungs)], axis=-1)

    def candidates(self) -> jax.Array:
        """[E, Q] candidate indices."""
        index = jnp.asarray(self.space.candidate_ER)
        return jnp.concatenate([jnp.zeros((index.shape[0], 1), index.dtype), index], axis=-1)

    def outcome_loss(self, features: Features) -> tuple[jax.Array, Metrics]:
        assert features.outcomes_BSC is not None
        seen, segment_ids_BS = self.seen(features), features.segment_ids_BS
        scores_BSE = self.module_scores(seen, features.available_E)
        loss_BSEQ = features.outcomes_BSC[..., self.candidates()]
        around_BSE = surrounding_mean(loss_BSEQ[..., -1], segment_ids_BS, 2 * self.config.half_life)
        target_BSE = jax.nn.softmax(-around_BSE / self.config.temperature)
        width_loss = self._width_loss(seen, loss_BSEQ, target_BSE, features)
        module_loss = masked_mean(-(target_BSE * jax.nn.log_softmax(scores_BSE)).sum(-1), segment_ids_BS)
        return module_loss + width_loss, {"module_loss": module_loss, "expected_bill": width_loss}

    def policy(self, seen: jax.Array, price: jax.Array) -> jax.Array:
        """[B, S, E, Q] the softened choice that training takes the expectation of; sums to 1 over Q."""
        # A ladder shorter than the longest repeats its last rung, which must not count twice.
        repeated_EQ = jnp.where(jnp.pad(self.space.valid_ER, ((0, 0), (1, 0)), constant_values=True), 0.0, jnp.inf)
        bill_BSEQ = self.excess_losses(seen) + price * self.costs() + repeated_EQ
        return jax.nn.softmax(-bill_BSEQ / self.config.temperature)

    def _width_loss(
        self, seen: jax.Array, loss_BSEQ: jax.Array, module_BSE: jax.Array, features: Features
    ) -> jax.Array:
        """The expectation of loss + price * cost, exact, averaged over prices, each module on text that suits it."""
        costs_EQ = self.costs()

        def expected_bill(price: jax.Array) -> jax.Array:
            bill_BSE = (self.policy(seen, price) * (loss_BSEQ + price * costs_EQ)).sum(-1)
            return masked_mean((module_BSE * bill_BSE).sum(-1), features.segment_ids_BS)

        return jax.vmap(expected_bill)(self._prices(features.price)).mean()

    def _prices(self, draw: jax.Array) -> jax.Array:
        """Log-uniform prices; `draw` in [0, 1) shifts an even grid, so every step covers the whole range."""
        low, high = (math.log(price) for price in self.config.prices)
        place = (jnp.arange(self.config.prices_per_step) + draw) / self.config.prices_per_step
        return jnp.exp(low + (high - low) * place)
