"""From losses of tokens to a table of whole sequences, which question routers learn from.

Legend: N rows, S positions of a row, P real positions of all rows, I items, C candidates.
"""

from __future__ import annotations

import math

import numpy as np

from moe_lab.data import Tokenizer
from moe_lab.evaluation.passes import HeldOut
from moe_lab.questions.table import ItemCandidate, ItemTable, make_table
from moe_lab.routing.outcomes import OutcomeTable
from moe_lab.routing.space import CandidateSpace

OUTCOME_UNIT = "bits per byte"
COST_UNIT = "multiply-adds in the routed layers"


def sequence_table(
    name: str, table: OutcomeTable, heldout: HeldOut, tokenizer: Tokenizer, shortest: int
) -> tuple[ItemTable, int]:
    """One item for the part of each document that lies in one row.

    A candidate's loss is `bits / bytes` of the item's predicted tokens; its cost is that of all the item's tokens.

    Args:
        name: of the item table.
        table: measured on the rows of `heldout`, those without an outcome left out (`OutcomeTable.counted`).
        heldout: the text.
        tokenizer: reads it back.
        shortest: items with fewer predicted bytes say too little and are left out.

    Returns:
        The items in order of the text, and how many were left out.
    """
    inside = heldout.counted_NS.any(axis=1)
    segment_NS, tokens_NS = heldout.rows.segment_ids[inside], heldout.rows.tokens[inside]
    assert segment_NS.shape == table.segment_ids_NS.shape, "the table was measured on other rows"
    real = segment_NS > 0
    row_P = np.nonzero(real)[0]
    first_I, item_P = np.unique(row_P * (int(segment_NS.max()) + 1) + segment_NS[real], return_inverse=True)
    counted_P = table.mask_NS[real]
    items = len(first_I)
    bytes_I = np.bincount(item_P, table.bytes_NS[real] * counted_P, minlength=items)
    tokens_I = np.bincount(item_P, minlength=items)
    # A position that does not count may hold anything.
    nats_PC = np.where(counted_P[:, None], table.loss_NSC[real], 0.0).astype(np.float64)
    nats_IC = np.stack([np.bincount(item_P, column, minlength=items) for column in nats_PC.T], axis=1)
    # Positions of one row are in order of their documents, so each item's tokens lie together.
    texts = [tokenizer.decode(ids) for ids in np.split(tokens_NS[real], np.cumsum(tokens_I)[:-1])]
    row_I = np.zeros(items, np.int64)
    row_I[item_P] = row_P
    kept = np.flatnonzero(bytes_I >= max(1, shortest))
    made = make_table(
        name,
        candidate_cards(table.space),
        nats_IC[kept] / math.log(2) / bytes_I[kept, None],
        tokens_I[kept, None] * table.space.cost_C.astype(np.float64),
        outcome="loss",
        outcome_unit=OUTCOME_UNIT,
        cost_unit=COST_UNIT,
        text=[texts[i] for i in kept],
        group=[table.groups[group] for group in table.group_N[row_I[kept]]],
    )
    return made, items - len(kept)


def candidate_cards(space: CandidateSpace) -> tuple[ItemCandidate, ...]:
    """The bare trunk, and every module at every rung; the rungs of one module are a family that widths order."""
    modules = (
        ItemCandidate(name=space.names[c], size=float(space.widths[e][r]), family=space.modules[e])
        for c, (e, r) in enumerate(space.pairs, start=1)
    )
    return ItemCandidate(name=space.names[0]), *modules


def domain_bits_per_byte(table: OutcomeTable) -> np.ndarray:
    """Bits per byte of every domain under every candidate alone [G, C]."""
    counted, groups = table.mask_NS, len(table.groups)
    domain_T = np.broadcast_to(table.group_N[:, None], counted.shape)[counted]
    bytes_G = np.bincount(domain_T, table.bytes_NS[counted], minlength=groups)
    nats_TC = table.loss_NSC[counted].astype(np.float64)
    nats_GC = np.stack([np.bincount(domain_T, column, minlength=groups) for column in nats_TC.T], axis=1)
    return nats_GC / math.log(2) / np.maximum(bytes_G, 1)[:, None]
