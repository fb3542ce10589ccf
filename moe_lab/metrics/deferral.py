"""Two candidates: quality against the share of items that the strong one answers, and the metrics of that curve.

Definitions of the RouteLLM paper (arXiv:2406.18665, section 3.2). Its code computes some of them another way; those
are in `moe_lab.metrics.published`.

Legend: N items, P points of the curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moe_lab.errors import LabError
from moe_lab.metrics.choices import Floats


@dataclass(frozen=True)
class DeferralCurve:
    """Quality when the items of highest score, up to a share, go to the strong candidate; straight between points.

    Items of equal score go over together: between the ends of such a block the curve is straight, which is what
    sending them over in random order gives on average. So the order of the rows changes nothing.
    """

    share_P: Floats  # from 0 to 1, rising
    quality_P: Floats

    @property
    def weak(self) -> float:
        """Quality of the weak candidate alone."""
        return float(self.quality_P[0])

    @property
    def strong(self) -> float:
        """Quality of the strong candidate alone."""
        return float(self.quality_P[-1])

    @property
    def recovered_P(self) -> Floats:
        """PGR at every point."""
        return pgr(self.quality_P, self.weak, self.strong)

    def at(self, share: ArrayLike) -> Floats:
        """Quality at a share of strong calls."""
        return np.interp(np.asarray(share, np.float64), self.share_P, self.quality_P)


def deferral_curve(
    score_N: ArrayLike, weak_N: ArrayLike, strong_N: ArrayLike, weight_N: ArrayLike | None = None
) -> DeferralCurve:
    """The curve of a score: the higher it is, the earlier an item goes to the strong candidate.

    Args:
        score_N: the router's score of each item, such as the predicted gain.
        weak_N, strong_N: quality of the two candidates on each item, higher is better.
        weight_N: how often each item counts; for bootstrap resamples.
    """
    score, weak, strong = (np.asarray(values, np.float64) for values in (score_N, weak_N, strong_N))
    weight = np.ones_like(score) if weight_N is None else np.asarray(weight_N, np.float64)
    assert score.shape == weak.shape == strong.shape == weight.shape, "one score, two qualities, one weight an item"
    assert weight.sum() > 0, "no items"
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    counts = np.add.reduceat(weight[order], starts)
    gains = np.add.reduceat((weight * (strong - weak))[order], starts)
    total = weight.sum()
    share = np.concatenate([[0.0], np.cumsum(counts) / total])
    share[-1] = 1.0
    quality = (weight * weak).sum() / total + np.concatenate([[0.0], np.cumsum(gains) / total])
    return DeferralCurve(share, quality)


def pgr(quality: ArrayLike, weak: float, strong: float) -> Floats:
    """Performance gap recovered, `(quality - weak) / (strong - weak)`. Above 1 where routing beats the strong one.

    Raises:
        LabError: the two are equally good, so there is no gap.
    """
    if strong == weak:
        raise LabError(
            f"both candidates have quality {weak:g}, so there is no gap to recover; "
            "compare the quality itself, or another pair"
        )
    return (np.asarray(quality, np.float64) - weak) / (strong - weak)


def apgr(curve: DeferralCurve) -> float:
    """Average performance gap recovered: the integral of PGR over the share of strong calls from 0 to 1.

    Exact for the curve, which is straight between its points. A random score has 0.5; the oracle more than 1 where
    the weak candidate is sometimes better.
    """
    return float(np.trapezoid(curve.recovered_P, curve.share_P))


def apgr_ten_points(curve: DeferralCurve) -> float:
    """The paper's discrete form, `1/10 * sum_i PGR(c_i)`, at c = 5 %, 15 %, ..., 95 %.

    The paper asks for ten shares and does not list them. These are the middles of ten equal parts, for which a
    random score has 0.5 as in the integral; with the right ends it would have 0.55.
    """
    return float(pgr(curve.at(np.arange(10) / 10 + 0.05), curve.weak, curve.strong).mean())


def cpt(curve: DeferralCurve, recovered: float) -> float:
    """Call-performance threshold: the least share of strong calls with PGR of at least `recovered`.

    The first point where the curve gets there, that is where its running maximum does; later dips do not matter.
    Infinite where it never gets there.
    """
    reached_P = curve.recovered_P
    # Sums of gains round: half of a gap of two items may come out a hair below one half.
    reached = reached_P >= recovered - 1e-9
    first = int(np.argmax(reached))
    if not reached[first]:
        return float("inf")
    if first == 0:
        return 0.0
    low, high = reached_P[first - 1], reached_P[first]
    part = min(1.0, (recovered - low) / (high - low))
    return float(curve.share_P[first - 1] + part * (curve.share_P[first] - curve.share_P[first - 1]))
