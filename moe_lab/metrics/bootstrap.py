"""Bootstrap intervals of a ratio of sums, such as bits per byte, by resampling whole document rows.

Tokens of one row are not independent, so the row is the unit. Legend: U units, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, model_validator

from moe_lab.config.spec import Spec

_DRAWS_PER_CHUNK = 1 << 21


class Interval(Spec):
    """An estimate and the bounds of its interval, `low <= mean <= high`."""

    model_config = ConfigDict(allow_inf_nan=False)

    mean: float
    low: float
    high: float

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.low <= self.mean <= self.high:
            raise ValueError(f"expected low <= mean <= high, got {self.low}, {self.mean}, {self.high}")
        return self


def ratio_interval(
    numerator_per_unit: ArrayLike,
    denominator_per_unit: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of `sum(numerator) / sum(denominator)`.

    Args:
        numerator_per_unit: for example the bits of each document row [U].
        denominator_per_unit: for example the bytes of each document row [U]; not negative, not all zero.
        strata: a label for each unit [U]. Units are resampled within their stratum, which is right where the
            number of units per stratum was fixed beforehand: rows of several domains put together.
        resamples: bootstrap resamples drawn.
        seed: the same seed and sizes draw the same units, so two calls on the same rows are paired.
        level: share of the resampled ratios that lies between `low` and `high`.

    Returns:
        The plain ratio as `mean`, and the interval, widened where needed to hold `mean`. One unit alone (or
        one in every stratum) says nothing about spread: then `low == mean == high`. With fewer than about
        20 units the interval is a little too narrow.
    """
    numerator = np.asarray(numerator_per_unit, np.float64)
    denominator = np.asarray(denominator_per_unit, np.float64)
    assert numerator.ndim == 1, "one numerator a unit"
    assert numerator.shape == denominator.shape, "one denominator a unit"
    assert np.isfinite(numerator).all(), "a unit's numerator is not a finite number"
    assert denominator.min(initial=0) >= 0, "a unit's denominator is negative"
    assert denominator.sum() > 0, "all denominators are zero"
    assert resamples > 0, "at least one resample"
    assert 0 < level < 1, "level is a share"
    mean = float(numerator.sum() / denominator.sum())
    sums = np.zeros((2, resamples))
    rng = np.random.default_rng(seed)
    for members in _members(strata, len(numerator)):
        sums += _resampled_sums(np.stack([numerator[members], denominator[members]]), resamples, rng)
    drawn = sums[1] > 0
    ratios = sums[0, drawn] / sums[1, drawn]
    return _percentile_interval(mean, ratios, level)


def paired_difference_interval(
    a_numerator_per_unit: ArrayLike,
    b_numerator_per_unit: ArrayLike,
    denominator_per_unit: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of `sum(a)/sum(denominator) - sum(b)/sum(denominator)`, both measured on the same units.

    Pairing removes the spread that the two share: rows that are hard for both.
    """
    difference = np.asarray(a_numerator_per_unit, np.float64) - np.asarray(b_numerator_per_unit, np.float64)
    return ratio_interval(difference, denominator_per_unit, strata=strata, resamples=resamples, seed=seed, level=level)


def _members(strata: ArrayLike | None, units: int) -> list[NDArray[np.intp]]:
    if strata is None:
        return [np.arange(units)]
    labels = np.asarray(strata)
    assert labels.shape == (units,), "one stratum label a unit"
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _resampled_sums(values_2U: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Sums of each row of `values_2U` over `resamples` draws of U units with replacement, [2, R]."""
    units = values_2U.shape[1]
    per_chunk = max(1, _DRAWS_PER_CHUNK // units)
    sums = [
        values_2U[:, rng.integers(units, size=(min(per_chunk, resamples - done), units))].sum(axis=2)
        for done in range(0, resamples, per_chunk)
    ]
    return np.concatenate(sums, axis=1)


def statistic_intervals(
    statistic: Callable[[NDArray[np.float64]], ArrayLike],
    units: int,
    *,
    strata: ArrayLike | None = None,
    resamples: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """Percentile bootstrap intervals of any statistics of weighted units, such as the area under a curve.

    Args:
        statistic: from how often each unit counts [U] to one or several numbers; it is called with ones for the
            estimate and once for each resample. Give a difference as a number of its own: both of its sides then
            see the same resamples, so it is paired.
        units, strata, resamples, seed, level: as in `ratio_interval`.

    Returns:
        One interval for each number, widened where needed to hold the estimate. A resample on which a number is not
        finite does not count for it.
    """
    estimate = np.atleast_1d(np.asarray(statistic(np.ones(units)), np.float64))
    rng = np.random.default_rng(seed)
    members = _members(strata, units)
    drawn = np.empty((resamples, len(estimate)))
    for resample in range(resamples):
        weight_U = np.zeros(units)
        for inside in members:
            weight_U[inside] = np.bincount(rng.integers(len(inside), size=len(inside)), minlength=len(inside))
        drawn[resample] = statistic(weight_U)
    return [
        _percentile_interval(mean, column[np.isfinite(column)], level)
        for mean, column in zip(estimate.tolist(), drawn.T, strict=True)
    ]


def _percentile_interval(mean: float, drawn: NDArray[np.float64], level: float) -> Interval:
    """The middle `level` of what was drawn, widened to hold the estimate; the estimate alone where nothing was."""
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if drawn.size else (mean, mean)
    return Interval(mean=mean, low=min(float(low), mean), high=max(float(high), mean))
