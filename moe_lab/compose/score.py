"""What a composed model says of one text: logits, losses, and where each token was routed.

Shape letters: T tokens of the text, K choices of a token, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_lab.compose.model import ComposedModel
from moe_lab.data.tokenizers import Tokenizer, pieces
from moe_lab.errors import LabError

_SHORTEST = 64  # positions; lengths are rounded up to a power of two, so that few programs are compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredText:
    """A text as the model saw it: after the token that ends documents, and nothing else in front of it."""

    tokens_T: np.ndarray
    """int32, ids of the text's tokens."""
    pieces: tuple[str, ...]
    """The text that each token completes."""
    logits: np.ndarray
    """float32 [T + 1, V]: row t is what the model says of token t; the last row, of what comes after the text."""
    loss_T: np.ndarray
    """float32, nats that each token cost."""
    bytes_T: np.ndarray
    """int32, UTF-8 bytes that each token stands for."""
    modules: tuple[str, ...]
    """The router's modules, `owner/name`."""
    expert_TK: np.ndarray
    """int32, index into `modules`, decided when the token before was read."""
    width_TK: np.ndarray
    """int32, hidden units asked for; 0 is the bare trunk."""
    multiply_adds_T: np.ndarray
    """int64, in the routed layers, the router's own included."""

    @property
    def bits_per_byte(self) -> float:
        """Loss of all tokens in bits, over the bytes of the text."""
        return float(self.loss_T.sum(dtype=np.float64)) / math.log(2) / int(self.bytes_T.sum())


class _Row(NamedTuple):
    tokens: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray


def score_text(
    model: ComposedModel,
    text: str,
    *,
    price: float | None = None,
    without: Sequence[str] = (),
    domain: str | None = None,
) -> ScoredText:
    """Runs a composed model over one text.

    Args:
        model: from `load_composition` or `build_model`.
        text: not empty.
        price: nats per token that running the dearest candidate must save; the composition's own if left out.
        without: modules to opt out, `owner/name`.
        domain: told to routers that take it, as if somebody knew whose text it is.

    Raises:
        LabError: the text is empty, a module of `without` is not composed, or the router needs measured outcomes.
    """
    if model.router.needs_outcomes:
        raise LabError("this router looks up measured outcomes, which a text has none of; compose another one")
    tokens_T, bytes_T = model.trunk.tokenizer.encode(text)
    length = len(tokens_T)
    if not length:
        raise LabError("there is no text to score; give a string of at least one character")
    arrays, batch = model.arrays(), _as_row(tokens_T, model.trunk.tokenizer)
    logits, decision = model.run_with_logits(
        arrays,
        batch,
        model.enter(arrays, batch),
        available_E=model.available(without),
        price=price,
        hint_BE=None if domain is None else model.hint([domain]),
    )
    loss, _, expert, width, blocks = (np.asarray(field)[0, :length] for field in decision.by_token())
    return ScoredText(
        tokens_T=tokens_T,
        pieces=tuple(pieces(model.trunk.tokenizer, tokens_T)),
        logits=np.asarray(logits)[0, : length + 1],
        loss_T=loss,
        bytes_T=bytes_T,
        modules=model.space.modules,
        expert_TK=expert,
        width_TK=width * model.trunk.spec.block,
        multiply_adds_T=blocks.astype(np.int64) * model.multiply_adds_per_block + model.router.multiply_adds,
    )


def _as_row(tokens_T: np.ndarray, tokenizer: Tokenizer) -> _Row:
    """One document in a row of its own: what stands in front of one, then the text; padding has segment 0."""
    real = len(tokens_T) + 1
    length = max(_SHORTEST, 1 << (real - 1).bit_length())
    tokens, targets = np.zeros((2, 1, length), np.int32)
    tokens[0, :real] = [tokenizer.start_id, *tokens_T]
    targets[0, :real] = [*tokens_T, tokenizer.eos_id]
    place = np.arange(length, dtype=np.int32)[None]
    return _Row(tokens, targets, (place < real).astype(np.int32), np.where(place < real, place, 0))
