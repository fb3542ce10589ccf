"""Which items a router may learn from when others are scored: by number of folds, and by group."""

from __future__ import annotations

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.metrics.areas import CostRange, aiq, policy_points
from moe_lab.questions import evaluate
from moe_lab.questions.evaluate import OutOfFold
from moe_lab.questions.folds import deal_folds, evaluation_folds, number_keys, outside, trial_parts
from moe_lab.questions.results import RouterCost
from moe_lab.questions.summary import summarise
from moe_lab.questions.table import ItemTable, make_table
from moe_lab.reports.route_report import render_route_report
from tests.questions.synthetic import LARGE, QUICK, SMALL, scored_by, word_table

BY_GROUP = QUICK.model_copy(update={"folds": "groups"})


def topics(words_tell: bool, items: int = 480, seed: int = 0) -> ItemTable:
    """Four groups. The large candidate gains on `hard` questions of any group, or else only in the first two groups."""
    rng = np.random.default_rng(seed)
    group_N, hard_N = rng.integers(0, 4, items), rng.integers(0, 2, items)
    gains = hard_N == 1 if words_tell else group_N < 2
    right_NC = np.stack([np.where(gains, 0.0, 1.0), np.ones(items)], axis=1)
    right_NC = np.where(rng.random(right_NC.shape) < 0.1, 1 - right_NC, right_NC)
    texts = [f"{('easy', 'hard')[h]} question {n}" for n, h in enumerate(hard_N)]
    return make_table("topics", (SMALL, LARGE), right_NC, [1, 10], text=texts, group=[f"g{g}" for g in group_N])


def area(scored: OutOfFold, role: str) -> float:
    table = scored.table
    points = policy_points(scored.choices(role, 24)[1], table.quality_NC, table.cost_NC)  # type: ignore[arg-type]
    return aiq(points, CostRange.of(table.cost_C))


def test_equal_keys_have_equal_numbers_and_one_fold() -> None:
    keys = ["b", "a", "b", "c", "a"]
    assert number_keys(keys).tolist() == [0, 1, 0, 2, 1]
    folds = deal_folds(keys, 2, 0)
    assert folds[0] == folds[2]
    assert folds[1] == folds[4]


def test_no_router_of_a_group_saw_it_nor_a_twin_of_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    table = topics(words_tell=True, items=120)
    twins = ItemTable(**{**vars_of(table), "text_N": (*table.text_N[:100], *table.text_N[:20])})
    seen = []
    train = evaluate.train_router
    monkeypatch.setattr(evaluate, "train_router", lambda *given: seen.append(given[2]) or train(*given))
    scored, _ = scored_by(twins, BY_GROUP)
    assert [verdict.group for verdict in scored.verdicts] == ["g0", "g1", "g2", "g3"]
    assert len(seen.pop()) == len(twins)  # of the router that is kept
    for verdict, index in zip(scored.verdicts, seen, strict=True):
        own = twins.group_N == twins.groups.index(str(verdict.group))
        texts = {twins.text_N[i] for i in np.flatnonzero(own)}
        expected = [i for i in range(len(twins)) if not own[i] and twins.text_N[i] not in texts]
        assert index.tolist() == expected
    assert any(len(index) < (twins.group_N != g).sum() for g, index in enumerate(seen))


def vars_of(table: ItemTable) -> dict:
    return {name: getattr(table, name) for name in ItemTable.__dataclass_fields__}


@pytest.mark.slow
def test_the_group_table_throws_dice_where_it_has_no_row() -> None:
    scored, _ = scored_by(topics(words_tell=False), BY_GROUP)
    np.testing.assert_array_equal(scored.group_NC, scored.mean_NC)
    # One answer for all: the means of the other groups would be low where a group's own is high.
    assert len(np.unique(scored.mean_NC, axis=0)) == 1
    assert area(scored, "group_table") == pytest.approx(area(scored, "zero_router"))
    cost = RouterCost(parameters=1, microseconds_per_question=1.0, questions_per_batch=1)
    results = summarise(scored, BY_GROUP, name="t", mode="learned", router_cost=cost, warnings=[], seconds=1.0)
    assert results.figure("APGR", "group_table") == results.figure("APGR", "zero_router") == pytest.approx(0.5)
    assert results.folds == 4
    page = render_route_report(results)
    assert "each of 4 groups left out in turn" in page
    assert not results.groups_tell
    assert "gained over the group table" not in page
    assert "groups do not tell" not in page


def test_what_words_tell_is_found_in_a_group_that_was_never_seen() -> None:
    scored, _ = scored_by(topics(words_tell=True), BY_GROUP)
    assert {verdict.mode for verdict in scored.verdicts} == {"learned"}
    best, floor = area(scored, "oracle"), area(scored, "zero_router")
    assert area(scored, "routed") > floor + 0.6 * (best - floor)


@pytest.mark.slow
def test_where_only_the_group_tells_nothing_is_gained_on_a_new_group() -> None:
    table = topics(words_tell=False)
    known, _ = scored_by(table, QUICK)
    assert area(known, "routed") > area(known, "zero_router") + 0.05
    scored, _ = scored_by(table, BY_GROUP)
    modes = [verdict.mode for verdict in scored.verdicts]
    assert modes.count("learned") < len(modes)
    # Whole groups are held back, so knowing the others is seen to be worth nothing.
    for verdict in scored.verdicts:
        assert verdict.validation["group_table"] == pytest.approx(verdict.validation["zero_router"])
    assert area(scored, "routed") == pytest.approx(area(scored, "zero_router"), abs=0.03)


def test_whole_groups_are_held_back_and_single_items_where_there_is_one_group() -> None:
    table = topics(words_tell=True)
    index = np.flatnonzero(table.group_N != 2)
    part_N = trial_parts(table, index, BY_GROUP)
    parts = [np.unique(part_N[table.group_N[index] == g]) for g in (0, 1, 3)]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert set(np.concatenate(parts)) == set(range(len(set(np.concatenate(parts)))))
    alone = np.flatnonzero(table.group_N == 2)
    shares = np.bincount(trial_parts(table, alone, BY_GROUP)) / len(alone)
    assert shares == pytest.approx([0.25] * 4, abs=0.05)
    assert not outside(table, alone)[alone].any()


def test_one_group_cannot_be_left_out() -> None:
    table = word_table(20)
    with pytest.raises(LabError, match="needs two groups or more"):
        evaluation_folds(make_table("t", table.candidates, table.outcome_NC, [1, 10], text=table.text_N), BY_GROUP)


def test_items_that_all_look_the_same_are_dealt_into_two_trials_all_the_same() -> None:
    """Else nothing would be held back of them."""
    table = word_table(9)
    same = make_table("t", table.candidates, table.outcome_NC, [1, 10], text=["which?"] * 9)
    assert len(set(same.keys)) == 1
    for spec in (QUICK, BY_GROUP):
        assert sorted(np.bincount(trial_parts(same, np.arange(9), spec))) == [4, 5]
