"""What routers share that learn from outcome tables which module suits a document, and what width is worth to a token.

Two questions, two time scales. *Whose own text is this?* is answered by evidence that adds up over the document: the
text that a module is best on is its own. *How much of it?* is answered by the token itself: a small network reads
its hidden state beside the fading mean of the document so far. Whoever knows the answer to the first may give it as
a hint, a log prior that is added to the evidence.

The evidence are scores of the n-grams of the document's tokens, added up: a naive Bayes classifier, trained on text
of each domain. No outcome has to be measured for that, so it learns from far more text than an outcome table has.

What a token loses by running less of a module is learned by squared error, from tokens of the text that the module
suits, so that the prediction is a mean: the rung with the least predicted loss + price * cost is then right at every
price. What the modules lose on each other's text, at full width, is a table learned beside that.

Shape letters: B batch, S sequence, D model width, H hidden, E modules, M the same modules as choices, R rungs, Q the
bare trunk and then the rungs, C candidates.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field, PositiveFloat, PositiveInt

from moe_lab.config.spec import Spec
from moe_lab.routing.ngrams import MOST_BUCKETS, ngram_rows
from moe_lab.routing.router import (
    Features,
    Metrics,
    Router,
    masked_mean,
    running_mean,
    running_total,
    surrounding_mean,
)
from moe_lab.routing.space import CandidateSpace


class LadderConfig(Spec):
    """Settings of every ladder router.

    Attributes:
        half_life: tokens after which evidence counts half.
        ngrams: longest n-gram whose scores are evidence; with 0 a small network on the hidden states takes their place.
        buckets: rows of the table of scores for each length of n-gram; n-grams share rows by their hash.
        hidden: width of the hidden layer of each network.
        temperature: nats; how much less a module may suit a text to learn from it too.
    """

    half_life: PositiveFloat = 64.0
    ngrams: Annotated[int, Field(ge=0, le=8)] = 4
    buckets: Annotated[int, Field(ge=1, le=MOST_BUCKETS)] = 4096
    hidden: PositiveInt = 64
    temperature: PositiveFloat = 0.05


class LadderRouter(Router):
    """Whose own text it is from the document so far, a score for every rung from the token.

    A subclass defines `route`. Unless it defines another `width_loss` too, its scores are steps of predicted loss.
    """

    Config = LadderConfig
    trains_on = "outcomes"
    takes_hints = True
    first_score: ClassVar[float] = -1.5
    """What the width head says of every rung before it has learned anything."""

    def __init__(self, config: LadderConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        modules, rungs = space.candidate_ER.shape
        zeros = nnx.initializers.zeros
        if config.ngrams:
            self.ngram_scores = nnx.Param(jnp.zeros((config.ngrams * config.buckets, modules)))
            self.first_scores_E = nnx.Param(jnp.zeros(modules))
        else:
            self.module_hidden = nnx.Linear(2 * d_model, config.hidden, rngs=rngs)
            self.module_head = nnx.Linear(config.hidden, modules, kernel_init=zeros, rngs=rngs)
        # A module is best on its own text until something is learned. Flat, for weight decay, which would pull losses
        # towards zero, is for matrices.
        self.level = nnx.Param(-0.1 * jnp.eye(modules).ravel())
        self.width_hidden = nnx.Linear(2 * d_model, config.hidden, rngs=rngs)
        bias = nnx.initializers.constant(self.first_score)
        self.width_head = nnx.Linear(config.hidden, modules * rungs, kernel_init=zeros, bias_init=bias, rngs=rngs)

    @property
    def learns_from_text(self) -> bool:
        return self.config.ngrams > 0

    @property
    def multiply_adds(self) -> int:
        """Every entry of a matrix once; of the n-grams' table the scores that are looked up, added up and faded."""
        entries = super().multiply_adds + self.level.size
        if not self.config.ngrams:
            return entries
        modules = len(self.space.modules)
        return entries - self.ngram_scores.size + (self.config.ngrams + 1) * modules

    def seen(self, features: Features) -> jax.Array:
        """[B, S, 2D], what the networks read: the token, and the document so far."""
        evidence = running_mean(features.hidden_BSD, features.segment_ids_BS, self.config.half_life)
        return jnp.concatenate([features.hidden_BSD, evidence], axis=-1)

    def text_scores(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
        """[B, S, E] logits from the document's n-grams so far."""
        rows_BSN = ngram_rows(tokens_BS, segment_ids_BS, self.config.ngrams, self.config.buckets)
        scores_BSE = self.ngram_scores[...][rows_BSN].sum(-2)
        return self.first_scores_E[...] + running_total(scores_BSE, segment_ids_BS, self.config.half_life)

    def own_scores(self, features: Features, seen: jax.Array) -> jax.Array:
        """[B, S, E] logits of whose own text this is, hint not included."""
        if self.config.ngrams:
            return self.text_scores(features.tokens_BS, features.segment_ids_BS)
        scores: jax.Array = self.module_head(nnx.gelu(self.module_hidden(seen)))
        return scores

    def own_shares(self, features: Features, seen: jax.Array) -> jax.Array:
        """[B, S, E] probabilities of whose own text this is. A hint that is certain decides."""
        scores_BSE = self.own_scores(features, seen)
        hint_BE = features.hint_BE
        return jax.nn.softmax(scores_BSE if hint_BE is None else scores_BSE + hint_BE[:, None])

    def levels(self) -> jax.Array:
        """[E, M] nats that a token of a module's own text loses with a module at full width, above the bare trunk."""
        modules = len(self.space.modules)
        return self.level[...].reshape(modules, modules)

    def module_shares(self, own_BSE: jax.Array, available_E: jax.Array) -> jax.Array:
        """[B, S, M] how likely each module is the best one of those that are left; all 0 where none is."""
        best_E = jnp.argmin(jnp.where(available_E, self.levels(), jnp.inf), axis=-1)
        best_EM = jax.nn.one_hot(best_E, len(self.space.modules)) * available_E
        return own_BSE @ best_EM

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
        loss_BSEQ = features.outcomes_BSC[..., self.candidates()]
        own_BSE = self._own_text(features, loss_BSEQ)
        # By the text and not by the token: where a module happens to do well its width seems to be worth more.
        suits_EM = jax.nn.softmax(-jax.lax.stop_gradient(self.levels()) / self.config.temperature)
        width_loss = self.width_loss(features, seen, loss_BSEQ, own_BSE @ suits_EM)
        level_loss = self._level_loss(loss_BSEQ, own_BSE * (segment_ids_BS > 0)[..., None])
        metrics = {"width_loss": width_loss, "level_loss": level_loss}
        if self.config.ngrams:
            return width_loss + level_loss, metrics
        module_loss = own_loss(self.own_scores(features, seen), own_BSE, segment_ids_BS)
        return module_loss + width_loss + level_loss, {"module_loss": module_loss, **metrics}

    def _own_text(self, features: Features, loss_BSEQ: jax.Array) -> jax.Array:
        """[B, S, E] whose own text it is: by the hint, or of the modules that lose least in a token's surroundings."""
        around_BSE = surrounding_mean(loss_BSEQ[..., -1], features.segment_ids_BS, 2 * self.config.half_life)
        if features.hint_BE is None:
            return jax.nn.softmax(-around_BSE / self.config.temperature)
        return jnp.broadcast_to(jax.nn.softmax(features.hint_BE)[:, None], around_BSE.shape)

    def text_loss(
        self, tokens_BS: jax.Array, segment_ids_BS: jax.Array, own_BS: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        own_BSE = jax.nn.one_hot(own_BS, len(self.space.modules))
        loss = own_loss(self.text_scores(tokens_BS, segment_ids_BS), own_BSE, segment_ids_BS)
        return loss, {"module_loss": loss}

    def _level_loss(self, loss_BSEQ: jax.Array, own_BSE: jax.Array) -> jax.Array:
        """Squared error whose minimum is the mean of each module's losses on each module's own text."""
        above_BSM = loss_BSEQ[..., -1] - loss_BSEQ[..., 0]
        share_E = own_BSE.sum((0, 1))
        mean_EM = jnp.einsum("bse,bsm->em", own_BSE, above_BSM) / jnp.maximum(share_E, 1e-6)[:, None]
        part_E = share_E / jnp.maximum(share_E.sum(), 1.0)
        return (part_E[:, None] * jnp.square(self.levels() - mean_EM)).sum()

    def width_loss(self, features: Features, seen: jax.Array, loss_BSEQ: jax.Array, suits_BSE: jax.Array) -> jax.Array:
        """Squared error of the predicted excess, each module on the tokens that it suits."""
        excess_BSEQ = loss_BSEQ - loss_BSEQ[..., -1:]
        error_BSE = jnp.square(self.excess_losses(seen) - excess_BSEQ).sum(-1)
        return masked_mean((suits_BSE * error_BSE).sum(-1), features.segment_ids_BS)


def own_loss(scores_BSE: jax.Array, own_BSE: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """Cross-entropy of whose own text it is, over the tokens that are not padding."""
    return masked_mean(-(own_BSE * jax.nn.log_softmax(scores_BSE)).sum(-1), segment_ids_BS)
