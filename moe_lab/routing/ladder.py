"""What routers share that learn from outcome tables which module suits a document, and what width is worth to a token.

Two questions, two time scales. *Whose own text is this?* is answered by evidence that adds up over the document: the
text that a module is best on is its own. *How much of it?* is answered by the token itself and what came just before.
Whoever knows the answer to the first may give it as a hint, a log prior that is added to the evidence.

The evidence are scores of the n-grams of the document's tokens, added up: a naive Bayes classifier, trained on text
of each domain. No outcome has to be measured for that, so it learns from far more text than an outcome table has.

What the modules lose on each other's text, at full width, is a table of means. What width is worth is learned from
tokens of the text that a module suits; how, is left to `ExcessRouter` and others.

So a router of ladders holds two parts: `TextEvidence`, and what is learned of the widths, as `RungLoss`.

Shape letters: B batch, S sequence, D model width, H hidden, E modules, M the same modules as choices, R rungs, Q the
bare trunk and then the rungs, C candidates.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field, PositiveFloat, PositiveInt

from moe_lab.config.spec import Spec
from moe_lab.nn.pool import Routing
from moe_lab.routing.joining import take_over
from moe_lab.routing.memory import Faded, Recent, fading_mean, nothing_faded, nothing_recent, surrounding_mean
from moe_lab.routing.ngrams import MOST_BUCKETS, Ngrams
from moe_lab.routing.router import Counted, Features, Metrics, Router, masked_mean
from moe_lab.routing.space import CandidateSpace
from moe_lab.routing.text_evidence import NetworkEvidence, NgramEvidence, TextEvidence


class LadderConfig(Spec):
    """Settings of every ladder router.

    Attributes:
        half_life: tokens after which evidence counts half.
        ngrams: longest n-gram whose scores are evidence; with 0 a small network on the hidden states takes their place.
        buckets: rows of a table for each length of n-gram; n-grams share rows by their hash.
        shrinkage: tokens; after so many a measured n-gram is half believed.
        hidden: width of the hidden layer of each network.
        temperature: nats; how much less a module may suit a text to learn from it too.
    """

    half_life: PositiveFloat = 64.0
    ngrams: Annotated[int, Field(ge=0, le=8)] = 4
    buckets: Annotated[int, Field(ge=1, le=MOST_BUCKETS)] = 16384
    shrinkage: PositiveFloat = 16.0
    hidden: PositiveInt = 64
    temperature: PositiveFloat = 0.05


class Seen(NamedTuple):
    """What such a router read of each token and of what came before it."""

    networks_BSX: jax.Array  # [B, S, 2D], what networks read: the hidden state, and the fading mean of its document's
    ngrams_BSN: jax.Array  # int32, rows of the token's n-grams in a table
    own_BSE: jax.Array  # logits of whose own text this is, hint not included


class LadderState(NamedTuple):
    """What later tokens need of earlier ones."""

    hidden: Faded  # sums [D + 1] of hidden states and of their weights
    recent: Recent  # the last ids of the document
    evidence: Any  # of whose own text it is


class LadderRouter(Router):
    """Whose own text it is from the document so far. Abstract: a subclass defines `choose` and `width_loss`.

    One that counts something of the widths defines `prepare_widths`, one that modules may join `join_widths`.
    """

    Config = LadderConfig
    trains_on = "outcomes"
    takes_hints = True

    def __init__(self, config: LadderConfig, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs):
        super().__init__(config, space, d_model, rngs=rngs)
        modules = len(space.modules)
        self.d_model, self.ngrams = d_model, ngrams_of(config)
        self.home_evidence = _text_evidence(config, modules, d_model, rngs)
        # A module is best on its own text until something is counted.
        self.level_EM = Counted(-0.1 * jnp.eye(modules))

    @property
    def learns_from_text(self) -> bool:
        return self.home_evidence.learns_from_text

    def init_state(self, rows: int) -> LadderState:
        return LadderState(
            nothing_faded(rows, self.d_model + 1),
            nothing_recent(rows, self.ngrams.remembered),
            self.home_evidence.init_state(rows),
        )

    def step(self, state: LadderState | None, features: Features) -> tuple[Routing, LadderState | None]:
        seen, state = self.read(state, features)
        return self.choose(features, seen), state

    def read(self, state: LadderState | None, features: Features) -> tuple[Seen, LadderState | None]:
        """All that depends on earlier tokens; of whole rows without a state."""
        hidden, recent, evidence = (None, None, None) if state is None else state
        mean_BSD, hidden = fading_mean(features.hidden_BSD, features.segment_ids_BS, self.config.half_life, hidden)
        ngrams_BSN, recent = self.ngrams.rows_after(features.tokens_BS, features.segment_ids_BS, recent)
        networks_BSX = jnp.concatenate([features.hidden_BSD, mean_BSD], axis=-1)
        own_BSE, evidence = self.home_evidence.scores(networks_BSX, ngrams_BSN, features.segment_ids_BS, evidence)
        seen = Seen(networks_BSX, ngrams_BSN, own_BSE)
        if state is None or hidden is None or recent is None:
            return seen, None
        return seen, LadderState(hidden, recent, evidence)

    def seen(self, features: Features) -> Seen:
        """`read` of whole rows."""
        return self.read(None, features)[0]

    def choose(self, features: Features, seen: Seen) -> Routing:
        """The routing of tokens, given what was read up to each."""
        raise NotImplementedError

    def own_shares(self, features: Features, seen: Seen) -> jax.Array:
        """[B, S, E] probabilities of whose own text this is. A hint that is certain decides."""
        hint_BE = features.hint_BE
        return jax.nn.softmax(seen.own_BSE if hint_BE is None else seen.own_BSE + hint_BE[:, None])

    def module_shares(self, own_BSE: jax.Array, available_BE: jax.Array) -> jax.Array:
        """[B, S, M] how likely each module is the best one of those that are left; all 0 where none is."""
        available_B1E = available_BE[:, None]
        best_BE = jnp.argmin(jnp.where(available_B1E, self.level_EM[...], jnp.inf), axis=-1)
        best_BEM = jax.nn.one_hot(best_BE, len(self.space.modules)) * available_B1E
        return own_BSE @ best_BEM

    def costs(self) -> jax.Array:
        """[E, Q] relative cost."""
        return jnp.asarray(self.space.relative_cost_EQ)

    def candidates(self) -> jax.Array:
        """[E, Q] candidate indices."""
        index = jnp.asarray(self.space.candidate_ER)
        return jnp.concatenate([jnp.zeros((index.shape[0], 1), index.dtype), index], axis=-1)

    def rung_losses(self, features: Features) -> jax.Array:
        """[B, S, E, Q] the measured outcomes, ladder by ladder."""
        assert features.outcomes_BSC is not None
        return features.outcomes_BSC[..., self.candidates()]

    def prepare(self, features: Features) -> None:
        self.count_levels(features)
        self.prepare_widths(features)

    def join(self, known: Self, features: Features) -> None:
        take_over(self, known)
        self.count_levels(features)
        old = len(known.space.modules)
        self.level_EM[...] = self.level_EM[...].at[:old, :old].set(known.level_EM[...])
        self.join_widths(known, features)

    def count_levels(self, features: Features) -> None:
        """Counts the levels: nats a token of a module's own text loses with a module at full width, above the trunk."""
        loss_BSEQ = self.rung_losses(features)
        own_BSE = self.own_text(features) * (features.segment_ids_BS > 0)[..., None]
        above_BSM = loss_BSEQ[..., -1] - loss_BSEQ[..., 0]
        share_E1 = own_BSE.sum((0, 1))[:, None]
        mean_EM = jnp.einsum("bse,bsm->em", own_BSE, above_BSM) / jnp.maximum(share_E1, 1e-6)
        # What is no text's home keeps what was believed of it.
        self.level_EM[...] = jnp.where(share_E1 > 1e-6, mean_EM, self.level_EM[...])

    def outcome_loss(self, features: Features) -> tuple[jax.Array, Metrics]:
        seen, loss_BSEQ = self.seen(features), self.rung_losses(features)
        own_BSE = self.own_text(features)
        width_loss = self.width_loss(features, seen, loss_BSEQ, self.suited(own_BSE))
        if self.learns_from_text:
            return width_loss, {"width_loss": width_loss}
        module_loss = own_loss(seen.own_BSE, own_BSE, features.segment_ids_BS)
        return module_loss + width_loss, {"module_loss": module_loss, "width_loss": width_loss}

    def suited(self, own_BSE: jax.Array) -> jax.Array:
        """[B, S, M] how far each module learns from a token.

        By the text and not by the token: where a module happens to do well its width seems to be worth more.
        """
        return own_BSE @ jax.nn.softmax(-self.level_EM[...] / self.config.temperature)

    def own_text(self, features: Features) -> jax.Array:
        """[B, S, E] whose own text it is: by the hint, or of the modules that lose least in a token's surroundings."""
        if features.hint_BE is not None:
            own_BE = jax.nn.softmax(features.hint_BE)
            return jnp.broadcast_to(own_BE[:, None], (*features.segment_ids_BS.shape, own_BE.shape[-1]))
        widest_BSE = self.rung_losses(features)[..., -1]
        around_BSE = surrounding_mean(widest_BSE, features.segment_ids_BS, 2 * self.config.half_life)
        return jax.nn.softmax(-around_BSE / self.config.temperature)

    def text_loss(
        self, tokens_BS: jax.Array, segment_ids_BS: jax.Array, own_BS: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        own_BSE = jax.nn.one_hot(own_BS, len(self.space.modules))
        loss = own_loss(self.home_evidence.text_scores(tokens_BS, segment_ids_BS), own_BSE, segment_ids_BS)
        return loss, {"module_loss": loss}

    def width_loss(self, features: Features, seen: Seen, loss_BSEQ: jax.Array, suits_BSE: jax.Array) -> jax.Array:
        """What is minimised beside whose own text it is."""
        raise NotImplementedError

    def prepare_widths(self, features: Features) -> None:
        """Sets what of the widths follows from all outcomes by counting, once the levels are counted."""

    def join_widths(self, known: Self, features: Features) -> None:
        """In place of `prepare_widths` where modules join."""
        raise NotImplementedError


def ngrams_of(config: LadderConfig) -> Ngrams:
    """The n-grams that the tables of such a router have rows for."""
    return Ngrams(longest=config.ngrams, buckets=config.buckets, shrinkage=config.shrinkage)


def _text_evidence(config: LadderConfig, modules: int, d_model: int, rngs: nnx.Rngs) -> TextEvidence:
    if config.ngrams:
        return NgramEvidence(ngrams_of(config), config.half_life, modules)
    return NetworkEvidence(d_model, config.hidden, modules, rngs=rngs)


def own_loss(scores_BSE: jax.Array, own_BSE: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
    """Cross-entropy of whose own text it is, over the tokens that are not padding."""
    return masked_mean(-(own_BSE * jax.nn.log_softmax(scores_BSE)).sum(-1), segment_ids_BS)
