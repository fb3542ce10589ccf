"""Bootstrap intervals against enumeration, closed forms and simulated coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from moe_lab.metrics.bootstrap import Interval, paired_difference_interval, ratio_interval

POSITIVE = st.floats(0.1, 100)


def test_matches_the_enumeration_of_every_resample():
    bits, sizes = np.array([1.0, 5.0, 12.0]), np.array([1.0, 2.0, 3.0])
    draws = np.array(list(itertools.product(range(3), repeat=3)))
    every_ratio = bits[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.quantile(every_ratio, [0.15, 0.85], method="inverted_cdf")
    found = ratio_interval(bits, sizes, resamples=20_000, level=0.7)
    assert found.mean == pytest.approx(3.0)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_of_a_large_sample_is_the_normal_interval():
    rng = np.random.default_rng(1)
    sizes = rng.integers(20, 200, 2000).astype(float)
    bits = 3 * sizes + rng.normal(0, 40, 2000)
    found = ratio_interval(bits, sizes, resamples=4000)
    ratio = bits.sum() / sizes.sum()
    standard_error = np.sqrt(((bits - ratio * sizes) ** 2).sum()) / sizes.sum()
    assert found.high - ratio == pytest.approx(1.96 * standard_error, rel=0.08)
    assert ratio - found.low == pytest.approx(1.96 * standard_error, rel=0.08)


def test_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(400):
        sizes = rng.integers(10, 60, 50).astype(float)
        bits = 2.5 * sizes * rng.gamma(8, 1 / 8, 50)
        found = ratio_interval(bits, sizes, resamples=300, seed=trial, level=0.9)
        covered += found.low <= 2.5 <= found.high
    assert 0.85 < covered / 400 < 0.94


def test_of_a_paired_difference_is_far_narrower_than_what_the_rows_share():
    rng = np.random.default_rng(3)
    sizes = np.full(100, 50.0)
    shared = rng.gamma(2, 60, 100)
    better, worse = shared + rng.normal(0, 1, 100), shared + 10 + rng.normal(0, 1, 100)
    difference = paired_difference_interval(better, worse, sizes)
    assert difference.mean == pytest.approx((better - worse).sum() / sizes.sum())
    assert -0.22 < difference.low < difference.high < -0.18
    alone = ratio_interval(better, sizes)
    assert alone.high - alone.low > 10 * (difference.high - difference.low)


def test_covers_a_paired_difference_of_nothing():
    rng = np.random.default_rng(4)
    covered = 0
    for trial in range(300):
        a, b = rng.normal(100, 10, (2, 60))
        found = paired_difference_interval(a, b, np.ones(60), resamples=300, seed=trial, level=0.9)
        covered += found.low <= 0 <= found.high
    assert 0.84 < covered / 300 < 0.95


def test_strata_leave_the_difference_between_domains_out_of_the_interval():
    sizes, domain = np.ones(200), np.repeat([0, 1], 100)
    bits = np.where(domain == 0, 1.0, 9.0) + np.random.default_rng(5).normal(0, 0.1, 200)
    pooled, stratified = ratio_interval(bits, sizes), ratio_interval(bits, sizes, strata=domain)
    assert pooled.mean == stratified.mean
    assert pooled.high - pooled.low > 10 * (stratified.high - stratified.low)
    assert stratified.high - stratified.low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(200), rel=0.2)


@given(hnp.arrays(float, st.integers(1, 12), elements=POSITIVE), POSITIVE, st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_scales_with_the_unit_of_measure(bits, scale, seed):
    sizes = np.arange(1, len(bits) + 1.0)
    plain = ratio_interval(bits, sizes, resamples=50, seed=seed)
    scaled = ratio_interval(bits * scale, sizes, resamples=50, seed=seed)
    for name in ("mean", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(scale * getattr(plain, name))
    assert plain.low <= plain.mean <= plain.high
    assert plain.low > 0.999 * bits.min() / sizes.max()
    assert plain.high < 1.001 * bits.max()


def test_of_one_row_or_of_equal_rows_has_no_spread():
    one = ratio_interval([3.0], [2.0])
    assert (one.low, one.mean, one.high) == (1.5, 1.5, 1.5)
    same = ratio_interval([3.0] * 7, [2.0] * 7)
    assert same.low == same.high == 1.5


def test_padding_rows_and_rows_without_bytes_are_allowed():
    found = ratio_interval([4.0, 0.0, 1.0], [2.0, 0.0, 0.0], resamples=200)
    assert found.mean == 2.5
    assert np.isfinite([found.low, found.high]).all()


def test_is_the_same_for_the_same_seed_however_it_is_cut(monkeypatch):
    bits, sizes = np.random.default_rng(6).gamma(2, 1, (2, 37))
    whole = ratio_interval(bits, sizes, resamples=100, seed=9)
    assert ratio_interval(bits, sizes, resamples=100, seed=9) == whole
    assert ratio_interval(bits, sizes, resamples=100, seed=10) != whole
    monkeypatch.setattr("moe_lab.metrics.bootstrap._DRAWS_PER_CHUNK", 370)
    assert ratio_interval(bits, sizes, resamples=100, seed=9) == whole


@pytest.mark.parametrize("bounds", [(2.0, 1.0, 1.5), (1.0, 1.0, float("inf")), (float("nan"), 1.0, 2.0)])
def test_an_interval_is_finite_and_ordered(bounds):
    low, mean, high = bounds
    with pytest.raises(ValidationError):
        Interval(mean=mean, low=low, high=high)
