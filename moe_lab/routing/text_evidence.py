"""Whose own text a document is, from what was read of it: the first of the two parts of a router of ladders.

`TextEvidence` is abstract; a final class of it reads n-grams, another the trunk's hidden states.

Shape letters: B batch, S sequence, D model width, N n-gram lengths, E modules.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from moe_lab.routing.memory import Faded, fading_total, nothing_faded
from moe_lab.routing.ngrams import Ngrams
from moe_lab.routing.router import RouterPart


class TextEvidence(RouterPart):
    """Scores of whose own text a document is. A token's evidence is added to what its document's earlier ones left.

    So what later tokens need of earlier ones has a fixed size, however long the document is: `init_state`.

    Attributes:
        learns_from_text: it is trained by `text_scores`, on text that nothing was measured on, and not on outcomes.
    """

    learns_from_text: ClassVar[bool]

    def init_state(self, rows: int) -> Any:
        """What `scores` takes in front of the first tokens, beside what the router keeps."""
        raise NotImplementedError

    def scores(
        self, seen_BSX: jax.Array, ngrams_BSN: jax.Array, segment_ids_BS: jax.Array, before: Any
    ) -> tuple[jax.Array, Any]:
        """[B, S, E] logits, hint not included, and what later tokens need.

        Args:
            seen_BSX: what networks read of the text.
            ngrams_BSN: int32, rows of the tokens' n-grams in a table.
            segment_ids_BS: of the text.
            before: what earlier chunks left; None of whole rows.
        """
        raise NotImplementedError

    def text_scores(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
        """[B, S, E] the same from the text alone, where that is enough (`learns_from_text`)."""
        raise NotImplementedError


class NgramEvidence(TextEvidence):
    """A naive Bayes classifier: scores of the document's n-grams, added up and fading.

    What later tokens need is the total [E] so far, beside the last N - 1 ids of the document, which the router keeps.
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

    def init_state(self, rows: int) -> Faded:
        return nothing_faded(rows, self.first_scores_E.size)

    def scores(
        self, seen_BSX: jax.Array, ngrams_BSN: jax.Array, segment_ids_BS: jax.Array, before: Faded | None
    ) -> tuple[jax.Array, Faded | None]:
        return self._scores(ngrams_BSN, segment_ids_BS, before)

    def text_scores(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array) -> jax.Array:
        return self._scores(self.ngrams.rows(tokens_BS, segment_ids_BS), segment_ids_BS, None)[0]

    def _scores(
        self, ngrams_BSN: jax.Array, segment_ids_BS: jax.Array, before: Faded | None
    ) -> tuple[jax.Array, Faded | None]:
        scores_BSE = self.ngram_scores[...][ngrams_BSN].sum(-2)
        total_BSE, after = fading_total(scores_BSE, segment_ids_BS, self.half_life, before)
        return self.first_scores_E[...] + total_BSE, after


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

    def init_state(self, rows: int) -> tuple[()]:
        return ()

    def scores(
        self, seen_BSX: jax.Array, ngrams_BSN: jax.Array, segment_ids_BS: jax.Array, before: tuple[()] | None
    ) -> tuple[jax.Array, tuple[()] | None]:
        scores: jax.Array = self.module_head(nnx.gelu(self.module_hidden(seen_BSX)))
        return scores, before
