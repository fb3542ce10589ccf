"""Item tables of sequences against sums made token by token."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest

from moe_lab.data import ByteTokenizer
from moe_lab.evaluation.passes import HeldOut
from moe_lab.jobs.sequences import candidate_cards, domain_bits_per_byte, sequence_table
from moe_lab.routing.example import SPACE
from moe_lab.routing.outcomes import OutcomeTable
from tests.evaluation.heldout import make_corpora, make_heldout


def random_table(heldout: HeldOut) -> OutcomeTable:
    """Losses of random numbers on the rows of two domains; where nothing counts they are NaN."""
    rows = heldout.rows
    loss = np.random.default_rng(0).gamma(2.0, size=(*rows.tokens.shape, len(SPACE))).astype(np.float32)
    return OutcomeTable(
        space=SPACE,
        groups=heldout.domains,
        loss_NSC=np.where(heldout.counted_NS[..., None], loss, np.nan).astype(np.float32),
        hidden_NSD=np.zeros((*rows.tokens.shape, 0), np.float32),
        tokens_NS=rows.tokens,
        segment_ids_NS=np.where(heldout.counted_NS, rows.segment_ids, 0),
        bytes_NS=rows.target_bytes,
        group_N=rows.domain,
    )


@pytest.fixture(scope="module")
def heldout() -> HeldOut:
    return make_heldout(make_corpora())


def by_hand(heldout: HeldOut, table: OutcomeTable) -> dict[tuple[int, int], dict]:
    """What each document's part of each row holds, added up position by position."""
    rows = heldout.rows
    found: dict[tuple[int, int], dict] = defaultdict(
        lambda: {"ids": [], "bytes": 0, "nats": np.zeros(len(SPACE)), "group": ""}
    )
    for row, place in np.argwhere(rows.segment_ids > 0):
        item = found[int(row), int(rows.segment_ids[row, place])]
        item["ids"].append(int(rows.tokens[row, place]))
        item["group"] = heldout.domains[rows.domain[row]]
        if rows.loss_mask[row, place] > 0:
            item["bytes"] += int(rows.target_bytes[row, place])
            item["nats"] += table.loss_NSC[row, place].astype(float)
    return found


@pytest.mark.parametrize("shortest", [1, 20])
def test_an_item_is_the_part_of_a_document_in_a_row(heldout: HeldOut, shortest: int) -> None:
    table = random_table(heldout)
    expected = [item for _, item in sorted(by_hand(heldout, table).items())]
    long = [item for item in expected if item["bytes"] >= shortest]
    made, left_out = sequence_table("made", table.counted(), heldout, ByteTokenizer(), shortest)
    assert left_out == len(expected) - len(long)
    assert (left_out > 0) == (shortest > 1)
    assert made.text_N == tuple(ByteTokenizer().decode(item["ids"]) for item in long)
    assert [made.groups[g] for g in made.group_N] == [item["group"] for item in long]
    bits = np.array([item["nats"] / math.log(2) / item["bytes"] for item in long])
    np.testing.assert_allclose(made.outcome_NC, bits, rtol=1e-6)
    cost = np.array([len(item["ids"]) * SPACE.cost_C for item in long])
    np.testing.assert_array_equal(made.cost_NC, cost)
    assert (made.outcome, made.outcome_unit, made.cost_unit) == (
        "loss",
        "bits per byte",
        "multiply-adds in the routed layers",
    )


def test_rungs_of_a_module_are_a_family_and_the_trunk_is_none() -> None:
    cards = candidate_cards(SPACE)
    assert tuple(card.name for card in cards) == SPACE.names
    assert (cards[0].size, cards[0].family) == (None, None)
    for card in cards[1:]:
        assert card.name == f"{card.family}:{card.size:.0f}"


def test_bits_per_byte_of_domains_are_sums_over_all_their_tokens(heldout: HeldOut) -> None:
    table, rows = random_table(heldout), heldout.rows
    for group, found in enumerate(domain_bits_per_byte(table.counted())):
        where = heldout.counted_NS & (rows.domain == group)[:, None]
        nats = table.loss_NSC[where].astype(float).sum(axis=0)
        np.testing.assert_allclose(found, nats / math.log(2) / rows.target_bytes[where].sum(), rtol=1e-6)
