"""Choices without learning against brute force over small random tables."""

from __future__ import annotations

import numpy as np
import pytest

from moe_lab.metrics.choices import (
    best_fixed,
    choose,
    fixed,
    group_means,
    group_means_out_of_fold,
    group_table,
    oracle,
    oracle_point,
    regret,
)


def random_table(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses and costs of few values, so that there are ties, and groups."""
    rng = np.random.default_rng(seed)
    items, candidates = rng.integers(1, 9), rng.integers(1, 6)
    loss_NC = rng.integers(0, 4, (items, candidates)) / 4
    cost = rng.integers(0, 4, (items, candidates) if seed % 2 else candidates).astype(float)
    return loss_NC, cost, rng.integers(0, 3, items)


def bill(loss_NC: np.ndarray, cost: np.ndarray, price: float, n: int, c: int) -> float:
    return loss_NC[n, c] + price * np.broadcast_to(cost, loss_NC.shape)[n, c]


def test_each_item_gets_the_least_bill_and_ties_go_to_the_cheaper() -> None:
    for seed in range(1000):
        loss_NC, cost, _ = random_table(seed)
        cost_NC = np.broadcast_to(cost, loss_NC.shape)
        for price in (0.0, 0.25, 1.0):
            chosen = oracle(loss_NC, cost, price)
            for n, c in enumerate(chosen):
                bills = [(bill(loss_NC, cost, price, n, k), cost_NC[n, k], k) for k in range(loss_NC.shape[1])]
                assert (bill(loss_NC, cost, price, n, c), cost_NC[n, c], c) == min(bills)
            assert regret(loss_NC, cost, price, chosen) == 0
            for c in range(loss_NC.shape[1]):
                assert regret(loss_NC, cost, price, fixed(c, len(loss_NC))) >= 0


def test_the_regret_of_a_choice_by_hand() -> None:
    loss_NC, cost_C = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([1.0, 3.0])
    assert regret(loss_NC, cost_C, 0.25, fixed(1, 2)) == pytest.approx(0.25)  # 0.75 where 0.75 and 0.25 would do
    assert regret(loss_NC, cost_C, 0.25, fixed(0, 2)) == pytest.approx(0.25)


def test_an_out_of_fold_group_mean_is_the_mean_of_the_others() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values_NC, group_N, fold_N = rng.normal(size=(12, 2)), rng.integers(0, 3, 12), rng.permutation(12) % 3
        found = group_means_out_of_fold(values_NC, group_N, fold_N)
        for n in range(12):
            seen = fold_N != fold_N[n]
            same = seen & (group_N == group_N[n])
            np.testing.assert_allclose(found[n], values_NC[same if same.any() else seen].mean(axis=0))


def test_means_of_single_precision_are_taken_in_double_precision() -> None:
    """Their sum is one more than single precision can say; a group without items has the mean of all."""
    losses = np.array([[2.0**24], [1.0]], np.float32)
    assert group_means(losses, [0, 0], 2).tolist() == [[2.0**23 + 0.5]] * 2


def test_shrinking_adds_items_of_the_overall_mean() -> None:
    found = group_means(np.array([[1.0], [1.0], [0.0], [0.0]]), np.array([0, 0, 0, 1]), 2, shrink=1.0)
    assert found[:, 0] == pytest.approx([(2 + 0.5) / 4, (0 + 0.5) / 2])
    values_NC = np.array([[1.0, 4.0], [1.0, 4.0], [0.0, 6.0], [0.0, 6.0]])
    both = group_means(values_NC, np.array([0, 0, 0, 1]), 2, shrink=0.5)
    assert both[:, 1] == pytest.approx([(14 + 0.5 * 5) / 3.5, (6 + 0.5 * 5) / 1.5])
    kept = group_means_out_of_fold(values_NC, np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1]), shrink=2.0)
    assert kept.tolist() == [[0.0, 6.0]] * 2 + [[1.0, 4.0]] * 2
    mixed = group_means_out_of_fold(values_NC, np.array([0, 1, 0, 1]), np.array([0, 1, 1, 1]), shrink=2.0)
    assert mixed[0] == pytest.approx([(0 + 2 / 3) / 3, (6 + 2 * 16 / 3) / 3])


def test_the_group_table_is_the_best_of_all_tables() -> None:
    for seed in range(0, 400, 2):
        loss_NC, cost_C, group_N = random_table(seed)
        table = group_table(loss_NC, cost_C, group_N, 0.25, num_groups=3)
        rows = np.arange(len(loss_NC))
        for group in range(3):
            inside = group_N == group
            means = (loss_NC[inside] if inside.any() else loss_NC).mean(axis=0) + 0.25 * cost_C
            assert means[table[group]] == pytest.approx(means.min())
        assert (loss_NC[rows, table[group_N]] + 0.25 * cost_C[table[group_N]]).mean() <= (
            loss_NC.mean(axis=0) + 0.25 * cost_C
        )[best_fixed(loss_NC, cost_C, 0.25)] + 1e-12


def test_what_an_unsolved_item_costs_is_a_convention() -> None:
    quality_NC = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    assert oracle_point(quality_NC, [2.0, 10.0]) == (pytest.approx((10 + 2 + 2 + 2) / 4), 0.75)
    assert oracle_point(quality_NC, [2.0, 10.0], unsolved="free") == (pytest.approx((10 + 0 + 2 + 2) / 4), 0.75)


def test_one_candidate_is_always_chosen() -> None:
    assert choose(np.ones((3, 1)), [5.0], 1e9).tolist() == [0, 0, 0]
