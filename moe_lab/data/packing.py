"""Documents packed into rows of fixed length.

Legend: B rows, S positions of a row. A split's documents, in some order, are one stream of tokens, each a target
once: row r predicts stream positions r*S to r*S + S - 1, each from the token before it. What stands before a document
is the tokenizer's start token, mostly the end token of another document, so every document is read as if alone after
one such token, as lm-evaluation-harness does. A document that goes on in the next row goes on from its last token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_lab.data.corpus import TokenSplit
from moe_lab.data.tokenizers import Int32, Tokenizer

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


class Batch(NamedTuple):
    """B packed rows of S positions.

    Attributes:
        tokens: int32[B, S].
        targets: int32[B, S], the token after each.
        segment_ids: int32[B, S], the target's document within the row, from 1; 0 is padding. Attention stays inside,
            so the end token in front of a document sees nothing of the one before.
        positions: int32[B, S], from 0 at each document's start and at each row's start.
        loss_mask: float32[B, S], 0 on padding and, in batches to measure on, where a document's end is the target.
        target_bytes: int32[B, S], UTF-8 bytes of the target; 0 for end of document and padding.
        domain: int32[B], index of the corpus.
        level: int32[B, S], exercise level of the document at each position, -1 for other text.
        answer_mask: float32[B, S], 1 on targets in an exercise's answer, the newline after it included.
    """

    tokens: Int32
    targets: Int32
    segment_ids: Int32
    positions: Int32
    loss_mask: Float32
    target_bytes: Int32
    domain: Int32
    level: Int32
    answer_mask: Float32


class Stream(NamedTuple):
    """A split's documents in one order.

    Attributes:
        order: int64[documents], the document at each place.
        bounds: int64[documents + 1], where in the stream each starts, and at last the stream's length.
    """

    order: Int64
    bounds: Int64


def stream_of(split: TokenSplit, order: Int64) -> Stream:
    lengths = np.diff(split.starts)[order]
    return Stream(order, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))


def whole_rows(split: TokenSplit, seq_len: int) -> int:
    """Rows with a target at every position; fewer than `seq_len` tokens at the end of the stream are in none."""
    return split.tokens // seq_len


def covering_rows(split: TokenSplit, seq_len: int) -> int:
    """Rows, the last one padded, in which every token is a target."""
    return -(-split.tokens // seq_len)


def pack_rows(
    split: TokenSplit,
    stream: Stream,
    rows: Int64,
    seq_len: int,
    domain: int,
    *,
    tokenizer: Tokenizer,
    count_ends: bool,
) -> Batch:
    """The rows with the given numbers; positions past the stream's end are padding.

    `count_ends` says whether the end of a document is in the loss mask: it is learned, but it is no text, so it has
    no part in bits per byte. A tokenizer's start token, where it has one of its own, takes the place of the end token
    in front of each document.
    """
    begin = (rows * seq_len)[:, None]
    at = begin + np.arange(seq_len)
    real = at < split.tokens
    at = np.minimum(at, split.tokens - 1)
    place = np.searchsorted(stream.bounds, at, side="right") - 1
    start = stream.bounds[place]
    target = _source(split, stream, at)
    counted = real if count_ends else real & (at + 1 < stream.bounds[place + 1])
    before = split.ids[_source(split, stream, (at - 1) % split.tokens)]
    if tokenizer.start_id != tokenizer.eos_id:
        before = np.where(at == start, tokenizer.start_id, before)
    return Batch(
        tokens=np.where(real, before, 0).astype(np.int32),
        targets=np.where(real, split.ids[target], 0).astype(np.int32),
        segment_ids=np.where(real, place - place[:, :1] + 1, 0).astype(np.int32),
        positions=np.where(real, at - np.maximum(start, begin), 0).astype(np.int32),
        loss_mask=counted.astype(np.float32),
        target_bytes=np.where(real, split.nbytes[target], 0).astype(np.int32),
        domain=np.full(len(rows), domain, np.int32),
        level=np.where(real, split.levels[stream.order[place]], -1).astype(np.int32),
        answer_mask=(real & split.answer[target]).astype(np.float32),
    )


def _source(split: TokenSplit, stream: Stream, at: Int64) -> Int64:
    """Where in the split the tokens at positions of the stream are."""
    place = np.searchsorted(stream.bounds, at, side="right") - 1
    positions: Int64 = split.starts[stream.order[place]] + at - stream.bounds[place]
    return positions
