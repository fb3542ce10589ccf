"""What a token loses by running less of a module than all of it: the second part of a router of ladders.

The prediction is a mean, so the rung with the least predicted loss + price * cost is right at every price.
`RungLoss` is abstract; a final class of it looks the loss up by the token's n-grams, another has a network predict it.

Shape letters: B batch, S sequence, E modules, R rungs, Q the bare trunk and then the rungs, N rows of a table.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from moe_lab.routing.ngrams import Ngrams
from moe_lab.routing.router import Counted, Features, RouterPart, masked_mean
from moe_lab.routing.space import CandidateSpace


class RungLoss(RouterPart):
    """Predicts, for each module, what each rung loses above its full width.

    Attributes:
        joins: whether what is known of some modules stays the same when others join.
    """

    joins: ClassVar[bool]

    def excess(self, seen_BSX: jax.Array, ngrams_BSN: jax.Array) -> jax.Array:
        """[B, S, E, Q] nats above the module's full width; below zero where less is expected to be better.

        Args:
            seen_BSX: what networks read of the text.
            ngrams_BSN: int32, rows of the tokens' n-grams in a table.
        """
        raise NotImplementedError

    def loss(
        self, seen_BSX: jax.Array, segment_ids_BS: jax.Array, excess_BSEQ: jax.Array, suits_BSE: jax.Array
    ) -> jax.Array:
        """What gradient steps minimise, given what was measured and how far each module learns from a token."""
        raise NotImplementedError

    def prepare(self, features: Features, excess_BSEQ: jax.Array, suits_BSE: jax.Array) -> None:
        """Sets what follows from all outcomes by counting."""
        raise NotImplementedError

    def join(self, known: Any, features: Features, excess_BSEQ: jax.Array, suits_BSE: jax.Array) -> None:
        """In place of `prepare` where `known`, of the same class, is that of a router that modules join."""
        raise NotImplementedError


class NgramRungLoss(RungLoss):
    """Each of the token's n-grams says how much more or less than on average is lost, rung by rung. All is counted."""

    joins = True

    def __init__(self, ngrams: Ngrams, space: CandidateSpace):
        self.ngrams = ngrams
        costs_EQ = jnp.asarray(space.relative_cost_EQ)
        # Until something is counted width is worth a little, in proportion.
        self.mean_excess_ER = Counted(0.25 * (1 - costs_EQ[:, :-1] / costs_EQ[:, -1:]))
        self.ngram_excess = Counted(jnp.zeros((ngrams.table_rows, space.candidate_ER.size)))

    @property
    def multiply_adds(self) -> int:
        """What is looked up and added, and the means."""
        return (self.ngrams.longest + 1) * self.ngram_excess.shape[1]

    def excess(self, seen_BSX: jax.Array, ngrams_BSN: jax.Array) -> jax.Array:
        more_BSER = self.ngram_excess[...][ngrams_BSN].sum(-2)
        shape = (*ngrams_BSN.shape[:-1], *self.mean_excess_ER.shape)
        return _with_full_width(self.mean_excess_ER[...] + more_BSER.reshape(shape))

    def loss(
        self, seen_BSX: jax.Array, segment_ids_BS: jax.Array, excess_BSEQ: jax.Array, suits_BSE: jax.Array
    ) -> jax.Array:
        return jnp.float32(0)

    def prepare(self, features: Features, excess_BSEQ: jax.Array, suits_BSE: jax.Array) -> None:
        self.mean_excess_ER[...], table_NER = self._fit(features, excess_BSEQ, suits_BSE, 0)
        self.ngram_excess[...] = table_NER.reshape(self.ngram_excess.shape)

    def join(self, known: NgramRungLoss, features: Features, excess_BSEQ: jax.Array, suits_BSE: jax.Array) -> None:
        old, rungs = known.mean_excess_ER.shape
        # On a longer ladder the last rung repeats, and nothing is lost by running less than it.
        repeated = ((0, 0), (0, self.mean_excess_ER.shape[1] - rungs))
        mean_ER = jnp.pad(known.mean_excess_ER[...], repeated)
        table_NER = jnp.pad(known.ngram_excess[...].reshape(-1, old, rungs), ((0, 0), *repeated))
        more_mean_ER, more_NER = self._fit(features, excess_BSEQ, suits_BSE, old)
        self.mean_excess_ER[...] = jnp.concatenate([mean_ER, more_mean_ER])
        self.ngram_excess[...] = jnp.concatenate([table_NER, more_NER], axis=1).reshape(self.ngram_excess.shape)

    def _fit(
        self, features: Features, excess_BSEQ: jax.Array, suits_BSE: jax.Array, first: int
    ) -> tuple[jax.Array, jax.Array]:
        """Of the modules from the first one on."""
        excess_BSER = excess_BSEQ[..., first:, :-1]
        return self.ngrams.fit(features.tokens_BS, features.segment_ids_BS, excess_BSER, suits_BSE[..., first:])


class NetworkRungLoss(RungLoss):
    """A small network predicts the step onto each rung, and learns by squared error."""

    joins = False  # a network that all modules share would have to be trained again

    def __init__(self, space: CandidateSpace, d_model: int, hidden: int, *, rngs: nnx.Rngs):
        self.space = space
        self.width = WidthNetwork(space, d_model, hidden, -1.5, rngs=rngs)

    @property
    def multiply_adds(self) -> int:
        return self.width.multiply_adds

    def excess(self, seen_BSX: jax.Array, ngrams_BSN: jax.Array) -> jax.Array:
        return self._excess(seen_BSX)

    def _excess(self, seen_BSX: jax.Array) -> jax.Array:
        # A repeated rung at the end of a short ladder adds no step.
        step_BSER = jax.nn.softplus(self.width(seen_BSX)) * self.space.valid_ER
        return _with_full_width(jnp.flip(jnp.cumsum(jnp.flip(step_BSER, -1), -1), -1))

    def loss(
        self, seen_BSX: jax.Array, segment_ids_BS: jax.Array, excess_BSEQ: jax.Array, suits_BSE: jax.Array
    ) -> jax.Array:
        """Squared error, each module on the tokens that it suits."""
        error_BSE = jnp.square(self._excess(seen_BSX) - excess_BSEQ).sum(-1)
        return masked_mean((suits_BSE * error_BSE).sum(-1), segment_ids_BS)

    def prepare(self, features: Features, excess_BSEQ: jax.Array, suits_BSE: jax.Array) -> None:
        """Nothing is counted."""


class WidthNetwork(RouterPart):
    """A small network that reads the token, and the document so far: one number for the step onto each rung."""

    def __init__(self, space: CandidateSpace, d_model: int, hidden: int, first_score: float, *, rngs: nnx.Rngs):
        self.rungs = space.candidate_ER.shape
        zeros, constant = nnx.initializers.zeros, nnx.initializers.constant
        self.hidden = nnx.Linear(2 * d_model, hidden, rngs=rngs)
        outputs = self.rungs[0] * self.rungs[1]
        self.head = nnx.Linear(hidden, outputs, kernel_init=zeros, bias_init=constant(first_score), rngs=rngs)

    @property
    def multiply_adds(self) -> int:
        return int(self.hidden.kernel.size + self.head.kernel.size)

    def __call__(self, seen_BSX: jax.Array) -> jax.Array:
        """[B, S, E, R]."""
        scores = self.head(nnx.gelu(self.hidden(seen_BSX)))
        return scores.reshape(*seen_BSX.shape[:2], *self.rungs)


def _with_full_width(excess_BSER: jax.Array) -> jax.Array:
    """[B, S, E, Q]: behind the trunk and the narrower rungs the full width, which loses nothing more."""
    return jnp.concatenate([excess_BSER, jnp.zeros_like(excess_BSER[..., :1])], axis=-1)
