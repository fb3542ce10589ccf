"""What a composed model did on held-out text, counted token by token; and which answers are wholly right."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.compose.model import ComposedModel
from moe_lab.data import Batch
from moe_lab.evaluation.outcomes import measure_outcomes
from moe_lab.evaluation.passes import AnswerItems, HeldOut, enter_all, run_pass
from moe_lab.routing.outcomes import OutcomeTable
from tests.compose.published import FIXED, MODULES, TRUNK, WIDTHS, Published, publish_all
from tests.evaluation.heldout import BATCH, LENGTH, ROWS, make_batches, make_corpora, make_heldout

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish_all(tmp_path_factory.mktemp("published") / "lab")


@pytest.fixture(scope="module")
def heldout() -> HeldOut:
    return make_heldout(make_corpora())


@pytest.fixture(scope="module")
def topk(published: Published) -> ComposedModel:
    return published.model(published.lock("lab/topk"))


@pytest.fixture(scope="module")
def measured(topk: ComposedModel) -> tuple[OutcomeTable, np.ndarray, list[tuple[int, float]]]:
    corpora, reported = make_corpora(), []
    table, hits = measure_outcomes(
        topk, corpora, make_batches(corpora), lambda done, seconds: reported.append((done, seconds))
    )
    return table, hits, reported


def masked_rows(draw_mask: np.ndarray, level: np.ndarray) -> Batch:
    """Rows of which only the answers matter."""
    nothing = np.zeros(draw_mask.shape, np.int32)
    return Batch(*[nothing] * 7, level=level.astype(np.int32), answer_mask=draw_mask.astype(np.float32))


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 4), length=st.integers(1, 12))
def test_answers_are_the_runs_of_the_mask_that_lie_inside_their_row(seed: int, rows: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    mask, level = rng.random((rows, length)) < 0.6, rng.integers(1, 5, (rows, length))
    hits = rng.random((rows, length)) < 0.8
    expected = []
    for row in range(rows):
        place = 0
        while place < length:
            end = place
            while end < length and mask[row, end]:
                end += 1
            if end > place and place > 0 and end < length:
                expected.append((row, place, end, int(level[row, place]), bool(hits[row, place:end].all())))
            place = max(end, place + 1)
    items = AnswerItems.of(masked_rows(mask, level))
    got = zip(items.row, items.start, items.end, items.level, items.right(hits), strict=True)
    assert [(*map(int, item[:4]), bool(item[4])) for item in got] == expected


def test_answers_of_real_exercises_are_read_from_their_text(heldout: HeldOut) -> None:
    rows, expected = heldout.rows, []
    for row in np.flatnonzero(rows.domain == 1):
        ids = [*rows.tokens[row].tolist(), int(rows.targets[row, -1])]
        text = "".join(chr(token) if token < 256 else "#" for token in ids)
        for answer in re.finditer(r"(?<== )[a-z0-9]+\n", text):
            level = (len(answer[0]) - 1) // 2 if answer[0][0].isalpha() else None
            expected.append((row, answer.start() - 1, answer.end() - 1, level))
    expected = [item for item in expected if item[2] < LENGTH]
    items = AnswerItems.of(rows)
    got = list(zip(items.row, items.start, items.end, items.level, strict=True))
    assert [item[:3] for item in got] == [item[:3] for item in expected]
    assert [own for own, item in zip(items.level, expected, strict=True) if item[3]] == [
        item[3] for item in expected if item[3]
    ]
    assert len(expected) > 3


def test_counted_tokens_know_their_row_domain_and_bytes(heldout: HeldOut) -> None:
    rows, expected = heldout.rows, []
    assert rows.tokens.shape == (2 * BATCH * math.ceil(ROWS / BATCH), LENGTH)
    units = {}
    for row, place in np.ndindex(rows.tokens.shape):
        if rows.loss_mask[row, place]:
            units.setdefault(row, len(units))
            expected.append((units[row], rows.domain[row], rows.target_bytes[row, place]))
    got = zip(heldout.unit_T, heldout.domain_T, heldout.bytes_T, strict=True)
    assert [tuple(map(int, token)) for token in got] == [tuple(map(int, token)) for token in expected]
    assert len(units) == 2 * ROWS


def test_a_pass_counts_bits_and_cost_from_the_routing(topk: ComposedModel, heldout: HeldOut) -> None:
    made = run_pass(topk, heldout, enter_all(topk, heldout))
    arrays, counted, bits, costs = topk.arrays(), 0, [], []
    for index, batch in enumerate(heldout.batches):
        hidden = topk.enter(arrays, batch)
        decision = topk.run(arrays, batch, hidden, available_E=topk.available())
        rows = slice(index * BATCH, (index + 1) * BATCH)
        np.testing.assert_array_equal(made.hit_NS[rows], decision.hit_BS)
        np.testing.assert_array_equal(made.expert_NSK[rows], decision.expert_BSK)
        np.testing.assert_array_equal(made.width_NSK[rows], 4 * np.asarray(decision.width_BSK))
        for row, place in np.argwhere(batch.loss_mask > 0):
            blocks = 0
            for expert, width in zip(decision.expert_BSK[row, place], decision.width_BSK[row, place], strict=True):
                owned = WIDTHS[MODULES[int(expert)]].values()
                blocks += sum(min(int(width), math.ceil(units / TRUNK.block)) for units in owned)
            bits.append(float(decision.loss_BS[row, place]) / math.log(2))
            costs.append(blocks * 3 * TRUNK.d_model * TRUNK.block + 2 * TRUNK.d_model * len(MODULES))
            counted += 1
    np.testing.assert_allclose(made.bits_T, bits, rtol=1e-6)
    np.testing.assert_array_equal(made.cost_T, costs)
    assert counted == int(heldout.counted_NS.sum())
    assert len(set(costs)) > 1


def test_a_table_holds_every_candidate_s_loss_on_the_rows(
    published: Published, topk: ComposedModel, heldout: HeldOut, measured
) -> None:
    table, hits, reported = measured
    fixed = published.model(published.lock(FIXED))
    index = table.space.names.index(FIXED["candidate"])
    made = run_pass(fixed, heldout, enter_all(fixed, heldout))
    outcomes = heldout.token_outcomes(table)
    np.testing.assert_allclose(outcomes.loss_TC[:, index], made.bits_T, rtol=1e-5)
    np.testing.assert_array_equal(hits[..., index], made.hit_NS)
    np.testing.assert_array_equal(made.cost_T, outcomes.cost_C[index])  # a fixed router costs nothing itself
    assert outcomes.loss_TC.shape == (int(heldout.counted_NS.sum()), len(table.space))
    assert [done for done, _ in reported] == list(range(1, len(heldout.batches) + 1))
    assert all(seconds > 0 for _, seconds in reported)


def test_a_table_counts_what_has_an_outcome_and_keeps_what_routers_read(
    topk: ComposedModel, heldout: HeldOut, measured
) -> None:
    table, _, _ = measured
    rows = heldout.rows
    np.testing.assert_array_equal(table.mask_NS, rows.loss_mask > 0)
    np.testing.assert_array_equal(table.segment_ids_NS[table.mask_NS], rows.segment_ids[table.mask_NS])
    np.testing.assert_array_equal(table.bytes_NS, rows.target_bytes)
    np.testing.assert_array_equal(table.group_N, rows.domain)
    assert table.groups == ("prose", "exercises")
    hidden = np.concatenate([np.asarray(part, np.float64) for part in enter_all(topk, heldout)])
    expected = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(table.hidden_NSD, expected, rtol=1e-4, atol=1e-5)
