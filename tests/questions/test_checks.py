"""What is wrong with tables more often than one would think."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.questions.checks import check_items, misaligned_candidates
from moe_lab.questions.folds import deal_folds
from moe_lab.questions.table import make_table
from tests.questions.synthetic import SMALL, ladder_table, word_table


def test_a_sound_table_has_nothing_to_warn_of() -> None:
    assert check_items(word_table(400)) == []


@pytest.mark.parametrize("shuffled", [[2], [0, 3], [0, 1, 2, 3, 4, 5]])
def test_columns_in_another_order_are_named(shuffled: list[int]) -> None:
    table = ladder_table(2000, candidates=9)
    outcome_NC = table.outcome_NC.copy()
    rng = np.random.default_rng(1)
    for c in shuffled:
        outcome_NC[:, c] = rng.permutation(outcome_NC[:, c])
    assert misaligned_candidates(outcome_NC) == shuffled
    warnings = check_items(dataclasses.replace(table, outcome_NC=outcome_NC))
    assert [warning.split(":")[0] for warning in warnings] == [f"m{c}" for c in shuffled]


def test_aligned_columns_are_never_named() -> None:
    for seed in range(50):
        assert misaligned_candidates(ladder_table(300, seed, candidates=5).outcome_NC) == []
    assert misaligned_candidates(np.random.default_rng(0).random((500, 4))) == []


def test_constant_columns_and_equal_costs_are_named() -> None:
    table = word_table(30)
    ones = np.ones_like(table.outcome_NC)
    assert check_items(dataclasses.replace(table, outcome_NC=ones)) == [
        "small: the same outcome on every item, so nothing tells when to use it",
        "large: the same outcome on every item, so nothing tells when to use it",
    ]
    equal = dataclasses.replace(table, cost_NC=np.full_like(ones, 3.0))
    assert check_items(equal) == [
        "all candidates cost 3: a price changes nothing, so the router goes for quality alone"
    ]


def test_a_candidate_that_collapses_in_one_group_is_named() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(["a", "b"], 300)
    right_NC = np.stack(
        [rng.random(600) < 0.6, np.where(group == "a", rng.random(600) < 0.9, rng.random(600) < 0.02)], 1
    )
    table = make_table("t", ladder_table(5).candidates[:2], right_NC, [1, 2], group=group)
    [warning] = check_items(table)
    assert re.match(r"m1: 0\.0\d on b, far below its 0\.4\d overall while another candidate has 0\.\d+ there", warning)


def test_one_group_only_is_named() -> None:
    table = make_table("t", (SMALL,), [[0.0], [1.0]], [1.0], text=["a", "b"], group=["x", "x"])
    assert check_items(table) == ["only one group, x: there is no group table to compare with"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"outcome_NC": np.full((30, 2), np.nan)}, "item 0 has the outcome nan for small"),
        ({"cost_NC": np.full((30, 2), np.inf)}, "item 0 has the cost inf for small"),
        ({"cost_NC": np.full((30, 2), -1.0)}, "item 0 costs -1 with small; costs begin at 0"),
        (
            {"number_names": ("length", "digits"), "number_NF": np.array([[1.0, 2.0]] * 29 + [[1.0, np.nan]])},
            "the feature digits has gaps",
        ),
    ],
)
def test_impossible_cells_are_refused(change: dict, reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        check_items(dataclasses.replace(word_table(30), **change))


def test_twins_stay_in_one_fold() -> None:
    keys = ["a", "b", "c", "d"] * 5 + [str(n) for n in range(100)]
    fold_N = deal_folds(keys, 5, seed=0)
    for key in "abcd":
        assert len({fold for fold, other in zip(fold_N, keys, strict=True) if other == key}) == 1
    assert np.bincount(fold_N).max() <= 20 + 1 + 5 * 4
    assert deal_folds(keys, 5, seed=1).tolist() != fold_N.tolist()


def test_items_told_apart_by_a_group_alone_are_no_twins() -> None:
    table = make_table("t", (SMALL,), [[0.0], [1.0], [1.0]], [1.0], group=["x", "x", "y"])
    assert len(set(table.keys)) == 3
    spaced = make_table("t", (SMALL,), [[0.0], [1.0]], [1.0], text=["a  question", "a question"])
    assert len(set(spaced.keys)) == 1
