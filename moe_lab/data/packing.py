"""Documents packed into rows of fixed length.

Legend: B rows, S positions of a row. A split's documents, in some order, are one stream of tokens; row r
reads stream positions r*S to r*S + S, the last of them only as a target: neighbouring rows overlap by one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_lab.data.corpus import TokenSplit
from moe_lab.data.tokenizers import Int32

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


class Batch(NamedTuple):
    """B packed rows of S positions.

    Attributes:
        tokens: int32[B, S].
        targets: int32[B, S], the token after each.
        segment_ids: int32[B, S], the document within the row, from 1; 0 is padding. Attention stays inside.
        positions: int32[B, S], from 0 at each document's start and at each row's start.
        loss_mask: float32[B, S], 0 on padding and where the next token is another document's.
        target_bytes: int32[B, S], UTF-8 bytes of the target; 0 for end of document and where masked.
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
    """Rows with a target at every position; up to `seq_len` tokens at the end of the stream are in none."""
    return max(split.tokens - 1, 0) // seq_len


def covering_rows(split: TokenSplit, seq_len: int) -> int:
    """Rows, the last one padded, that hold every token that can be a target."""
    return -(-max(split.tokens - 1, 0) // seq_len)


def pack_rows(split: TokenSplit, stream: Stream, rows: Int64, seq_len: int, domain: int) -> Batch:
    """The rows with the given numbers; positions past the stream's end are padding.

    The number after `covering_rows` can still meet the stream's last token, which has no target; all rows
    beyond that one are padding.
    """
    begin = (rows * seq_len)[:, None]
    at = begin + np.arange(seq_len + 1)
    inside = at < split.tokens
    at = np.minimum(at, split.tokens - 1)
    place = np.searchsorted(stream.bounds, at, side="right") - 1
    document, document_start = stream.order[place], stream.bounds[place]
    source = split.starts[document] + at - document_start

    real = inside[:, :-1]
    predicted = inside[:, 1:] & (place[:, 1:] == place[:, :-1])
    ids, target = split.ids[source], source[:, 1:]
    segment = place[:, :-1] - place[:, :1] + 1
    position = at[:, :-1] - np.maximum(document_start[:, :-1], np.minimum(begin, split.tokens - 1))
    return Batch(
        tokens=np.where(real, ids[:, :-1], 0).astype(np.int32),
        targets=np.where(inside[:, 1:], ids[:, 1:], 0).astype(np.int32),
        segment_ids=np.where(real, segment, 0).astype(np.int32),
        positions=np.where(real, position, 0).astype(np.int32),
        loss_mask=predicted.astype(np.float32),
        target_bytes=np.where(predicted, split.nbytes[target], 0).astype(np.int32),
        domain=np.full(len(rows), domain, np.int32),
        level=np.where(real, split.levels[document[:, :-1]], -1).astype(np.int32),
        answer_mask=(predicted & split.answer[target]).astype(np.float32),
    )
