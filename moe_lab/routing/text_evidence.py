"""Whose own text a document is, from what was read of it: the first of the two parts of a router of ladders.

`TextEvidence` is abstract; a final class of it reads n-grams, another the trunk's hidden states.

Shape letters: B batch, S sequence, D model width, N n-gram lengths, E modules.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from moe_lab.routing.ngrams import Ngrams
from moe_lab.routing.router import Features, RouterPart, running_total


class TextEvidence(RouterPart):
    """Scores of whose own text a document is. A token's evidence is added to what its document's earlier ones left.

    So what later tokens need of earlier ones has a fixed size, however long the document is; each class says what.

    Attributes:
        learns_from_text: it is trained by `text_scores`, on text that nothing was measured on, and not on outcomes.
    """

    learns_from_text: ClassVar[bool]

    def scores(self, features: Features, seen_BSX: jax.Array) -> jax.Array:
        """[B, S, E] logits, hint not included.

        Args:
            features: of the text.
            seen_BSX: what networks read of it (`LadderRouter.seen`).
        """
        raise NotImplementedError

    def text_scores(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
        """[B, S, E] the same from the text alone, where that is enough (`learns_from_text`)."""
        raise NotImplementedError


class NgramEvidence(TextEvidence):
    """A naive Bayes classifier: scores of the document's n-grams, added up and fading.

    What later tokens need: the total [E] so far, and the last N - 1 ids of the document.
    """

    learns_from_text = True

    def __init__(self, ngrams: Ngrams, half_life: float, modules: int):
        self.ngrams, self.half_life = ngrams, half_life
        self.ngram_scores = nnx.Param(jnp.zeros((ngrams.table_rows, modules)))
        self.first_scores_E = nnx.Param(jnp.zeros(modules))

    @property
    def multiply_adds(self) -> int:
        """The scores that are looked up, added up and faded."""
        return (self.ngrams.longest + 1) * self.ngram_scores.shape[1]

    def scores(self, features: Features, seen_BSX: jax.Array) -> jax.Array:
        return self.text_scores(features.tokens_BS, features.segment_ids_BS)

    def text_scores(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
        scores_BSE = self.ngram_scores[...][self.ngrams.rows(tokens_BS, segment_ids_BS)].sum(-2)
        return self.first_scores_E[...] + running_total(scores_BSE, segment_ids_BS, self.half_life)


class NetworkEvidence(TextEvidence):
    """A small network on the token's hidden state and the fading mean of its document's.

    What later tokens need lies in that mean, which the router keeps: the sums [D] of hidden states and of weights.
    """

    learns_from_text = False

    def __init__(self, d_model: int, hidden: int, modules: int, *, rngs: nnx.Rngs):
        self.module_hidden = nnx.Linear(2 * d_model, hidden, rngs=rngs)
        self.module_head = nnx.Linear(hidden, modules, kernel_init=nnx.initializers.zeros, rngs=rngs)

    @property
    def multiply_adds(self) -> int:
        return int(self.module_hidden.kernel.size + self.module_head.kernel.size)

    def scores(self, features: Features, seen_BSX: jax.Array) -> jax.Array:
        scores: jax.Array = self.module_head(nnx.gelu(self.module_hidden(seen_BSX)))
        return scores
