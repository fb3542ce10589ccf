"""What is predicted of each item, by whom, and what is chosen by it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_lab.metrics.areas import policy_points, quality_hull
from moe_lab.metrics.choices import group_means_out_of_fold
from moe_lab.questions.evaluate import OutOfFold, relative_items
from moe_lab.questions.table import ItemCandidate, ItemTable, make_table
from tests.questions.synthetic import QUICK, ladder_table, scored_by, word_table


def known(table: ItemTable, newcomers: int = 0) -> OutOfFold:
    """Everybody predicts the means."""
    means_NC = np.tile(table.quality_NC.mean(axis=0), (len(table), 1))
    return OutOfFold(
        table=table,
        fold_N=np.zeros(len(table), np.int64),
        routed_NC=means_NC,
        learned_NC=means_NC,
        group_NC=means_NC,
        mean_NC=means_NC,
        verdicts=(),
        newcomers=newcomers,
    )


def test_the_oracle_knows_what_each_item_costs() -> None:
    """The second item is dear for the candidate that is cheap as a mean: it goes to the other."""
    candidates = (ItemCandidate(name="a"), ItemCandidate(name="b"))
    cost_NC = np.array([[1.0, 9.0], [6.0, 2.0], [1.0, 9.0], [1.0, 4.0]])
    table = make_table("t", candidates, np.array([[1, 1], [1, 1], [0, 1], [0, 0]]), cost_NC, numbers={"n": range(4)})
    prices, choices = known(table).choices("oracle", 16)
    assert choices[0].tolist() == [0, 1, 1, 0]
    # 8 of cost, 6 being the dearer's mean, for one of quality: at a higher price the third item is not worth it.
    assert table.cost_C.tolist() == [2.25, 6.0]
    np.testing.assert_allclose(relative_items(table), cost_NC / 6)
    given = {price: choice[2] for price, choice in zip(prices, choices, strict=True)}
    assert {choice for price, choice in given.items() if price < 6 / 8 - 1e-6} == {1}
    assert {choice for price, choice in given.items() if price > 6 / 8 + 1e-10} == {0}


def test_whoever_routes_before_an_answer_knows_mean_costs_alone() -> None:
    table = ladder_table(60)
    table = dataclasses.replace(table, cost_NC=table.cost_NC * np.random.default_rng(0).gamma(1.0, size=(60, 1)))
    scored = known(table)
    for choice in scored.choices("routed", 16)[1]:
        assert len(set(choice)) == 1


def test_the_zero_router_mixes_the_corners_of_the_hull_and_no_other() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        cost_C = rng.permutation(12)[:6] + 1.0
        made = tuple(ItemCandidate(name=f"m{c}") for c in range(6))
        table = make_table("t", made, rng.random((7, 6)), cost_C, numbers={"n": range(7)})
        prices, choices = known(table).choices("zero_router", 16)
        hull = quality_hull(np.stack([cost_C, table.quality_NC.mean(axis=0)], axis=1))
        assert [choice[0] for choice in choices] == hull.candidates_V[::-1].tolist()
        points = policy_points(choices, table.quality_NC, table.cost_NC)
        np.testing.assert_allclose(points[::-1], np.stack([hull.costs_V, -hull.losses_V], axis=1))
        assert prices == sorted(prices)
        assert prices[0] == 0
        means_C, relative_C = table.quality_NC.mean(axis=0), cost_C / cost_C.max()
        for price, choice in zip(prices, choices, strict=True):
            bills = means_C - price * relative_C
            assert bills[choice[0]] == pytest.approx(bills.max())


def test_difficulty_knows_the_cheapest_and_the_means_of_the_others() -> None:
    table = word_table(60)
    scored = known(table)
    learned_NC = np.random.default_rng(0).random((60, 2))
    scored = dataclasses.replace(scored, learned_NC=learned_NC)
    np.testing.assert_array_equal(scored.predicted("difficulty")[:, 0], learned_NC[:, 0])
    np.testing.assert_array_equal(scored.predicted("difficulty")[:, 1], scored.mean_NC[:, 1])


@pytest.mark.slow
def test_a_fold_is_answered_as_its_verdict_says() -> None:
    """Abstaining to dice, it throws those of the zero router; to the group table, it says what the table says."""
    rng = np.random.default_rng(1)
    group_N = rng.integers(0, 2, 400)
    told_NC = (rng.random((400, 2)) < np.array([[0.1, 0.9], [0.8, 0.8]])[group_N]).astype(float)
    plain = word_table(400)
    by_group = make_table("t", plain.candidates, told_NC, [1, 10], group=group_N, numbers={"n": rng.random(400)})
    blind = QUICK.model_copy(update={"features": QUICK.features.model_copy(update={"group_weight": 0.0})})
    seen = set()
    for table, spec in ((word_table(300, 5, permuted=True), QUICK), (by_group, blind)):
        scored, _ = scored_by(table, spec)
        said = {"learned": scored.learned_NC, "group_table": scored.group_NC, "zero_router": scored.mean_NC}
        for verdict in scored.verdicts:
            inside = scored.fold_N == verdict.fold
            np.testing.assert_allclose(scored.routed_NC[inside], said[verdict.mode][inside])
            seen.add(verdict.mode)
        np.testing.assert_allclose(scored.mean_NC, np.tile(table.quality_NC.mean(axis=0), (len(table), 1)))
        expected = group_means_out_of_fold(table.quality_NC, table.group_N, scored.fold_N, shrink=spec.group_shrinkage)
        np.testing.assert_allclose(scored.group_NC, expected)
    assert seen >= {"group_table", "zero_router"}


def test_a_router_before_others_joined_is_the_same_router_without_them() -> None:
    """By its mode, that is: one that abstained then does so before as well."""
    table = word_table(60)
    learned_NC = np.random.default_rng(0).random((60, 2))
    scored = dataclasses.replace(known(table, newcomers=1), learned_NC=learned_NC)
    np.testing.assert_array_equal(scored.predicted("before"), scored.routed_NC[:, :1])
    np.testing.assert_array_equal(scored.predicted("routed"), scored.routed_NC)
    np.testing.assert_array_equal(scored.predicted("learned"), learned_NC)
