"""What a router may learn from, and when it may route."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_lab.metrics.bootstrap import Interval
from moe_lab.questions import training
from moe_lab.questions.features import raw_features
from moe_lab.questions.table import ItemTable, make_table
from moe_lab.questions.training import choose_mode, train_router
from tests.questions.synthetic import LARGE, QUICK, SMALL, ladder_table, router_of, word_table

OVER_TABLE, OVER_ZERO, TABLE_OVER_ZERO = (
    "learned over group_table",
    "learned over zero_router",
    "group_table over zero_router",
)
SURE, UNSURE, WORSE = (Interval(mean=m, low=m - 0.02, high=m + 0.02) for m in (0.05, 0.01, -0.05))


@pytest.mark.parametrize(
    ("over_table", "over_zero", "table_over_zero", "mode"),
    [
        (SURE, SURE, SURE, "learned"),
        (SURE, SURE, WORSE, "learned"),
        (UNSURE, SURE, SURE, "group_table"),
        (WORSE, SURE, SURE, "group_table"),
        (WORSE, SURE, UNSURE, "zero_router"),
        (SURE, UNSURE, WORSE, "zero_router"),
        (SURE, WORSE, UNSURE, "zero_router"),
        (UNSURE, UNSURE, UNSURE, "zero_router"),
        (WORSE, WORSE, SURE, "group_table"),
    ],
)
def test_it_routes_only_where_it_surely_gains_over_both(over_table, over_zero, table_over_zero, mode) -> None:
    assert choose_mode({OVER_TABLE: over_table, OVER_ZERO: over_zero, TABLE_OVER_ZERO: table_over_zero}) == mode


@pytest.mark.parametrize(("gain", "mode"), [(SURE, "learned"), (UNSURE, "zero_router"), (WORSE, "zero_router")])
def test_without_groups_dice_are_the_only_way_to_abstain(gain: Interval, mode: str) -> None:
    assert choose_mode({OVER_ZERO: gain}) == mode


def test_a_gain_of_nothing_is_none() -> None:
    nothing = Interval(mean=0.0, low=0.0, high=0.0)
    assert choose_mode({OVER_TABLE: nothing, OVER_ZERO: SURE, TABLE_OVER_ZERO: nothing}) == "zero_router"


def test_where_the_group_says_all_the_group_table_answers() -> None:
    rng = np.random.default_rng(0)
    group_N = rng.integers(0, 2, 300)
    right_NC = (rng.random((300, 2)) < np.array([[0.1, 0.9], [0.8, 0.8]])[group_N]).astype(float)
    texts = [f"{' '.join(rng.choice(['ab', 'cd', 'ef', 'gh'], 6))} {n}" for n in range(300)]
    table = make_table("t", (SMALL, LARGE), right_NC, [1, 10], text=texts, group=group_N)
    blind = QUICK.model_copy(update={"features": QUICK.features.model_copy(update={"group_weight": 0.0})})
    trained = train_router(table, raw_features(table, blind.features), np.arange(300), blind)
    assert trained.router.mode == "group_table"
    assert trained.gains[OVER_TABLE].high < 0
    assert trained.gains[TABLE_OVER_ZERO].low > 0
    assert trained.gains[OVER_TABLE].mean == pytest.approx(
        trained.validation["learned"] - trained.validation["group_table"]
    )


def test_a_router_is_made_of_its_training_items_alone() -> None:
    """Texts, numbers and outcomes of all others may be anything: word statistics and spreads are not theirs."""
    table = word_table(160)
    table = dataclasses.replace(table, number_names=("n",), number_NF=np.random.default_rng(0).random((160, 1)))
    index = np.flatnonzero(np.arange(160) % 4 != 1)
    rest = np.setdiff1d(np.arange(160), index)
    number_NF, outcome_NC, cost_NC = table.number_NF.copy(), table.outcome_NC.copy(), table.cost_NC.copy()
    number_NF[rest] += 1e3
    outcome_NC[rest] = 1 - outcome_NC[rest]
    cost_NC[rest] *= 7
    texts = ["algebra " * 40 if n in rest else text for n, text in enumerate(table.text_N or ())]
    other = dataclasses.replace(table, number_NF=number_NF, outcome_NC=outcome_NC, cost_NC=cost_NC, text_N=tuple(texts))
    first, second = (train_router(t, raw_features(t, QUICK.features), index, QUICK) for t in (table, other))
    assert first.validation == second.validation
    for name, values in first.router.tensors().items():
        np.testing.assert_array_equal(second.router.tensors()[name], values, err_msg=name)


def seen_by_trials(table: ItemTable, index: np.ndarray, spec, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The items that each trial router learnt from, and last those of the router itself."""
    seen: list[np.ndarray] = []
    fit = training._fit
    monkeypatch.setattr(training, "_fit", lambda *given: seen.append(given[2]) or fit(*given))
    train_router(table, raw_features(table, spec.features), index, spec)
    return seen


def test_a_trial_sees_no_twin_of_what_it_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where whole groups are held back, the same question may stand in two of them."""
    table = word_table(200)
    assert table.text_N is not None
    twins = dataclasses.replace(
        table,
        text_N=(*table.text_N[:120], *table.text_N[:80]),
        groups=("a", "b", "c", "d", "e"),
        group_N=np.random.default_rng(0).integers(0, 5, 200),
    )
    spec = QUICK.model_copy(update={"folds": "groups"})
    index = np.arange(10, 200)
    *trials, last = seen_by_trials(twins, index, spec, monkeypatch)
    np.testing.assert_array_equal(last, index)
    assert len(trials) == spec.trials
    held_back = []
    for seen in trials:
        assert set(seen) < set(index)
        groups = set(twins.group_N[seen])
        unseen = [n for n in index if twins.group_N[n] not in groups]
        held_back += unseen
        assert not {twins.keys[n] for n in seen} & {twins.keys[n] for n in unseen}
    assert sorted(held_back) == index.tolist()
    assert any(len(seen) < np.isin(twins.group_N[index], twins.group_N[seen]).sum() for seen in trials)


def test_every_training_item_is_held_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = word_table(100)
    index = np.arange(0, 100, 2)
    *trials, _ = seen_by_trials(table, index, QUICK, monkeypatch)
    assert np.bincount(np.concatenate([np.setdiff1d(index, seen) for seen in trials])).tolist() == [1, 0] * 49 + [1]


def ladders(few: int, fall_in_few: bool, *, fall_in_many: bool = False) -> tuple[tuple[int, ...], ...]:
    """What is made to rise where a group of `few` items, or one of 150, says that larger is worse."""
    table = ladder_table(300)
    group_N = np.where(np.arange(300) < few, 0, np.where(np.arange(300) < 150, 1, 2))
    falls = ((group_N == 0) & fall_in_few) | ((group_N == 2) & fall_in_many)
    outcome_NC = np.where(falls[:, None], table.outcome_NC[:, ::-1], table.outcome_NC)
    grouped = dataclasses.replace(table, outcome_NC=outcome_NC, groups=("few", "some", "many"), group_N=group_N)
    return router_of(grouped).ladders


def test_a_family_rises_unless_a_group_of_thirty_says_otherwise() -> None:
    assert ladders(29, fall_in_few=False) == ((0, 1, 2),)
    assert ladders(29, fall_in_few=True) == ((0, 1, 2),)
    assert ladders(30, fall_in_few=True) == ()
    assert ladders(29, fall_in_few=False, fall_in_many=True) == ()
