"""Heads against closed forms, isotonic regression against a library, blends against what they blend."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.isotonic import IsotonicRegression

from moe_lab.questions.heads import expected, fit_calibration, fit_heads, inverse, plain_calibration, rising


def problem(seed: int = 0, items: int = 200, candidates: int = 3):
    rng = np.random.default_rng(seed)
    x_NX = sparse.csr_matrix(rng.normal(size=(items, 4)).astype(np.float32))
    return x_NX, rng.random((items, candidates)), rng


def test_with_one_penalty_the_squared_heads_are_ridge_regressions() -> None:
    x_NX, quality_NC, _ = problem()
    heads = fit_heads(x_NX, quality_NC, "identity", penalty=3.0, own_penalty=1.0, iterations=200)
    dense = x_NX.toarray().astype(np.float64)
    centred = dense - dense.mean(axis=0)
    weight = np.linalg.solve(centred.T @ centred + 3.0 * np.eye(4), centred.T @ quality_NC)
    np.testing.assert_allclose(heads.weight_XC, weight, atol=1e-4)
    np.testing.assert_allclose(heads(x_NX).mean(axis=0), quality_NC.mean(axis=0), atol=1e-4)


def test_the_logistic_heads_stand_where_the_objective_is_flat() -> None:
    x_NX, quality_NC, _ = problem()
    heads = fit_heads(x_NX, quality_NC, "logistic", penalty=2.0, own_penalty=5.0, iterations=300)
    slope_NC = heads(x_NX) - quality_NC
    shared_X1 = heads.weight_XC.mean(axis=1, keepdims=True)
    gradient_XC = x_NX.T @ slope_NC + 2.0 * (shared_X1 + 5.0 * (heads.weight_XC - shared_X1))
    assert np.abs(gradient_XC).max() < 0.02
    assert np.abs(slope_NC.sum(axis=0)).max() < 0.02


def test_a_large_penalty_of_their_own_makes_candidates_differ_by_a_constant() -> None:
    x_NX, quality_NC, _ = problem()
    heads = fit_heads(x_NX, quality_NC, "identity", penalty=1.0, own_penalty=1e6, iterations=200)
    assert np.ptp(heads.weight_XC, axis=1).max() < 1e-3
    assert np.abs(heads.weight_XC).max() > 1e-3


@pytest.mark.parametrize("seed", range(30))
def test_rising_is_isotonic_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rungs = int(rng.integers(2, 7))
    predicted = rng.integers(0, 5, (3, rungs + 1)) / 4
    ladder = rng.permutation(rungs + 1)[:rungs].tolist()
    found = rising(predicted, [ladder])
    for row in range(3):
        expected_row = IsotonicRegression().fit_transform(np.arange(rungs), predicted[row, ladder])
        np.testing.assert_allclose(found[row, ladder], expected_row)
    left = next(c for c in range(rungs + 1) if c not in ladder)
    assert (found[:, left] == predicted[:, left]).all()


def test_the_links_undo_each_other() -> None:
    quality = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(expected(inverse(quality, "logistic"), "logistic"), quality)
    assert np.isfinite(inverse(np.array([0.0, 1.0]), "logistic")).all()


def test_a_blend_that_is_true_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.05, 0.95, (20_000, 2))
    right_NC = (rng.random(truth.shape) < truth).astype(float)
    plain = plain_calibration(np.array([0.5, 0.5]), "logistic", 0.25)
    np.testing.assert_allclose(fit_calibration(truth, truth, right_NC, plain).weight_2, [0.75, 0.25], atol=0.05)
    noise = rng.uniform(0.05, 0.95, truth.shape)
    assert fit_calibration(noise, noise, right_NC, plain).weight_2.max() < 0.05


def test_the_scale_of_a_blend_of_losses_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(0)
    heads, near, losses = rng.normal(size=(3, 5000, 1)) + 7.0
    losses = losses + 3.0 * heads
    plain = plain_calibration(losses.mean(axis=0), "identity", 0.5)
    blend = (heads + near) / 2 - losses.mean()
    expected_factor = float((blend * (losses - losses.mean())).sum() / (blend**2).sum())
    found = fit_calibration(heads, near, losses, plain).weight_2
    np.testing.assert_allclose(found, np.clip(expected_factor, 0, 5) / 2, atol=0.01)


def test_a_blend_mends_what_is_too_sure_of_itself() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.2, 0.8, (4000, 1))
    right_NC = (rng.random((4000, 1)) < truth).astype(float)
    too_sure = expected(3 * inverse(truth, "logistic"), "logistic")
    plain = plain_calibration(np.array([0.5]), "logistic", 0.0)
    mended = fit_calibration(too_sure, too_sure, right_NC, plain)(too_sure, too_sure)
    assert np.abs(mended - truth).mean() < 0.03 < np.abs(too_sure - truth).mean()
    np.testing.assert_allclose(plain(too_sure, truth), too_sure)
