"""Routers on tables whose truth is known: they find it, they do not find what is not there, and they say so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.metrics.areas import CostRange, aiq, policy_points
from moe_lab.metrics.deferral import apgr, deferral_curve
from moe_lab.questions import evaluate
from moe_lab.questions.evaluate import OutOfFold
from moe_lab.questions.router import QuestionRouter, price_grid, relative_cost
from moe_lab.questions.table import make_table
from tests.questions.synthetic import QUICK, ladder_table, router_of, scored_by, word_table


def gain_apgr(scored: OutOfFold, predicted_NC: np.ndarray) -> float:
    weak, strong = scored.table.quality_NC.T
    return apgr(deferral_curve(predicted_NC[:, 1] - predicted_NC[:, 0], weak, strong))


def test_gain_is_found_and_difficulty_alone_is_not_gain() -> None:
    scored, _ = scored_by(word_table(600), QUICK)
    assert {verdict.mode for verdict in scored.verdicts} == {"learned"}
    best = gain_apgr(scored, scored.table.quality_NC)
    assert 0.85 < gain_apgr(scored, scored.routed_NC) < best
    # Half of what the small candidate fails, the large one fails too.
    assert gain_apgr(scored, scored.difficulty_NC) < 0.8
    # The groups say nothing.
    assert abs(gain_apgr(scored, scored.group_NC) - 0.5) < 0.1


@pytest.fixture(scope="module")
def of_permuted() -> list[OutOfFold]:
    """Tables whose outcomes belong to other questions."""
    return [scored_by(word_table(400, seed, permuted=True), QUICK)[0] for seed in range(3)]


def test_permuted_outcomes_leave_nothing_to_find(of_permuted: list[OutOfFold]) -> None:
    figures = [gain_apgr(scored, scored.learned_NC) for scored in of_permuted]
    # One table's figure has a standard error of about 0.05.
    assert abs(np.mean(figures) - 0.5) < 0.09


def test_a_router_that_finds_nothing_abstains_and_says_so(of_permuted: list[OutOfFold]) -> None:
    modes = [verdict.mode for scored in of_permuted for verdict in scored.verdicts]
    # By luck alone it is above both baselines on held-back items in at most half of the folds.
    assert modes.count("learned") <= len(modes) / 2
    for scored in of_permuted:
        for verdict in scored.verdicts:
            inside = scored.fold_N == verdict.fold
            if verdict.mode == "zero_router":
                assert len(np.unique(scored.routed_NC[inside], axis=0)) == 1


def test_it_may_be_told_never_to_abstain() -> None:
    spec = QUICK.model_copy(update={"abstain": False})
    scored, _ = scored_by(word_table(200, permuted=True), spec)
    assert {verdict.mode for verdict in scored.verdicts} == {"learned"}
    np.testing.assert_array_equal(scored.routed_NC, scored.learned_NC)


def test_groups_alone_are_taken_where_text_says_nothing_more() -> None:
    rng = np.random.default_rng(0)
    topic = rng.integers(0, 2, 400)
    right_NC = (rng.random((400, 2)) < np.array([[0.1, 0.9], [0.8, 0.8]])[topic]).astype(float)
    table = make_table("t", word_table(4).candidates, right_NC, [1, 10], group=topic)
    router = router_of(table)
    choice = router.route(table, 0.3)
    assert (choice == 1 - topic).all()


def test_a_higher_price_never_costs_more() -> None:
    table = ladder_table(400)
    router = router_of(table)
    spent = [router.cost_C[router.route(table, price)].mean() for price in (0.0, 0.05, 0.1, 0.3, 1.0, 10.0)]
    assert spent == sorted(spent, reverse=True)
    assert spent[-1] == table.cost_C.min()
    assert spent[0] > spent[-1]


@pytest.mark.parametrize("candidates", [1, 2, 9])
def test_any_number_of_candidates_is_only_a_matter_of_the_table(candidates: int) -> None:
    table = ladder_table(300, candidates=candidates)
    scored, _ = scored_by(table, QUICK)
    over = CostRange.of(table.cost_C)
    found, fixed_ones = (
        aiq(policy_points(scored.choices(role, 24)[1], table.quality_NC, table.cost_NC), over)
        for role in ("routed", "zero_router")
    )
    assert found >= fixed_ones - 1e-9
    assert candidates == 1 or found > fixed_ones + 0.02


def test_a_family_is_made_to_rise_only_where_it_does() -> None:
    assert router_of(ladder_table(300)).ladders == ((0, 1, 2),)
    table = ladder_table(300)
    turned = dataclasses.replace(table, outcome_NC=table.outcome_NC[:, ::-1])
    assert router_of(turned).ladders == ()
    predicted = (router := router_of(table)).learned(router.read(table))
    assert (np.diff(predicted, axis=1) >= -1e-12).all()


def test_a_candidate_that_is_absent_is_never_chosen() -> None:
    table = ladder_table(300)
    router = router_of(table)
    assert set(router.route(table, 0.0)) >= {2}
    assert 2 not in router.route(table, 0.0, available=["m0", "m1"])
    without = router.route(table.only(["m1", "m0"]), 0.0)
    assert set(without) <= {0, 1}
    np.testing.assert_array_equal(without, router.route(table, 0.0, available=["m0", "m1"]))
    with pytest.raises(LabError, match='never seen the candidate "m9"'):
        router.route(table, 0.0, available=["m9"])


def test_a_group_that_was_never_seen_has_the_mean_of_all() -> None:
    table = word_table(200)
    router = router_of(table)
    strange = dataclasses.replace(table.rows(np.arange(3)), groups=("up", "down"))
    raw = router.read(strange)
    assert raw.group_N.tolist() == [-1, -1, -1]
    np.testing.assert_allclose(router.by_group(raw.group_N), np.tile(router.mean_C, (3, 1)))
    assert np.isfinite(router.predict(raw)).all()


def test_equal_costs_mean_quality_alone() -> None:
    table = word_table(300)
    table = dataclasses.replace(table, cost_NC=np.full_like(table.cost_NC, 2.0))
    scored, _ = scored_by(table, QUICK)
    assert price_grid(scored.routed_NC, relative_cost(table.cost_C), 10) == [0.0]
    free = dataclasses.replace(table, cost_NC=np.zeros_like(table.cost_NC))
    assert set(router_of(free).route(free, 5.0)) <= {0, 1}


def test_losses_of_any_size_are_learnt_too() -> None:
    table = ladder_table(300)
    losses = 100 + 30 * (1 - table.outcome_NC)
    table = dataclasses.replace(table, outcome="loss", outcome_NC=losses)
    scored, _ = scored_by(table, QUICK)
    error = np.abs(scored.routed_NC - table.quality_NC).mean()
    assert error < 0.6 * np.abs(table.quality_NC - table.quality_NC.mean(axis=0)).mean()


def test_a_rebuilt_router_gives_the_same_bits() -> None:
    table = word_table(200)
    router = router_of(table)
    again = QuestionRouter.rebuild(router.describe(), router.tensors())
    raw = router.read(table)
    np.testing.assert_array_equal(again.predict(raw), router.predict(raw))


def test_training_repeats_to_the_bit() -> None:
    first, second = (scored_by(word_table(200), QUICK)[0].routed_NC for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_items_that_do_not_fit_the_router_are_refused() -> None:
    router = router_of(ladder_table(100))
    with pytest.raises(LabError, match="trained on items without text"):
        router.read(word_table(10))
    with pytest.raises(LabError, match="reads hardness, which the table lacks"):
        router.read(make_table("t", router_candidates(), np.zeros((2, 3)), [1, 2, 3], numbers={"other": [1, 2]}))


def router_candidates():
    return ladder_table(5).candidates


def test_too_few_items_for_the_folds_are_refused() -> None:
    with pytest.raises(LabError, match="4 different items do not fill 5 folds"):
        scored_by(ladder_table(4), QUICK)


@pytest.mark.slow
def test_processes_side_by_side_find_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    table = word_table(200)
    alone, kept = scored_by(table, QUICK)
    monkeypatch.setattr(evaluate, "_SIDE_BY_SIDE", 0)
    together, kept_together = scored_by(table, QUICK)
    np.testing.assert_array_equal(alone.routed_NC, together.routed_NC)
    assert alone.verdicts == together.verdicts
    for name, values in kept.router.tensors().items():
        np.testing.assert_array_equal(kept_together.router.tensors()[name], values)
