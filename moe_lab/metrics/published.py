"""Metrics as public code computes them where that differs from its paper, for figures to be compared with theirs.

Points are rows of (cost, quality). Legend: P points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moe_lab.metrics.choices import Floats


def apgr_routellm_code(points_P2: ArrayLike, weak: float, strong: float) -> float:
    """APGR of lm-sys/RouteLLM `evals/evaluate.py`: trapezoids over the points that were evaluated.

        (area(accuracy) - area(weak)) / (area(strong) - area(weak)), over the share of strong calls

    Its points are thresholds at quantiles of the scores. Where scores repeat, they do not reach from 0 to 1, and the
    figure is the average over the range they cover; the paper averages over 0 to 1.

    Args:
        points_P2: (share of strong calls from 0 to 1, accuracy) of each threshold.
        weak, strong: accuracy of the two alone.
    """
    share, quality = _sorted(points_P2).T
    width = share[-1] - share[0]
    return float((np.trapezoid(quality, share) - weak * width) / ((strong - weak) * width))


def cpt_routellm_code(points_P2: ArrayLike, weak: float, strong: float, recovered: float) -> float:
    """CPT of lm-sys/RouteLLM `evals/evaluate.py`: `np.interp` from accuracy to share of strong calls.

    `np.interp` needs rising accuracy. On a curve that falls anywhere, its answer depends on how it searches; the
    paper's least share is `moe_lab.metrics.deferral.cpt`.
    """
    share, quality = _sorted(points_P2).T
    return float(np.interp(weak + recovered * (strong - weak), quality, share))


def aiq_routerbench_code(points_P2: ArrayLike, max_cost: float | None = None) -> float:
    """AIQ of withmartian/routerbench `evaluation/AIQ.py`: the hull's area divided by the greatest cost.

        1 / c_max * integral from the first point to c_max of hull(c) dc

    The paper divides by `c_max - c_min` instead. Dividing by c_max, what lies left of the first point counts as
    quality 0, so a router that begins dear loses area, and a table of cheap candidates gains.

    Args:
        points_P2: (total cost, performance) of the router.
        max_cost: the greatest cost of all routers that are compared; the router's own if it is left out.
    """
    points = _non_decreasing(_concave(_sorted(points_P2)))
    most = points[-1, 0] if max_cost is None else max(max_cost, points[-1, 0])
    reaching = np.vstack([points, (most, points[-1, 1])])
    return float(np.trapezoid(reaching[:, 1], reaching[:, 0]) / most)


def area_cascade_routing_code(points_P2: ArrayLike, candidates_C2: ArrayLike) -> float:
    """AUC of eth-sri/cascade-routing `selection/utils.py`, between the cheapest and the dearest candidate's cost.

    No hull. Right of the last point the curve stays flat; left of the first it begins at the *least* quality of any
    candidate, which need not be the cheapest one's. A point outside of the range only shapes the line across its end.

    Args:
        points_P2: (mean cost, mean quality) of each policy.
        candidates_C2: the same of every candidate alone.
    """
    points = np.unique(np.asarray(points_P2, np.float64), axis=0)
    candidates = np.asarray(candidates_C2, np.float64)
    low, high = candidates[:, 0].min(), candidates[:, 0].max()
    if points[-1, 0] < high:
        points = np.vstack([points, (high, points[-1, 1])])
    if points[0, 0] > low:
        points = np.vstack([(low, candidates[:, 1].min()), points])
    ends = [(end, np.interp(end, points[:, 0], points[:, 1])) for end in (low, high) if end not in points[:, 0]]
    reaching = _sorted(np.vstack([points, *ends]))
    inside = (reaching[:, 0] >= low) & (reaching[:, 0] <= high)
    return float(np.trapezoid(reaching[inside, 1], reaching[inside, 0]) / (high - low))


def _sorted(points_P2: ArrayLike) -> Floats:
    points = np.asarray(points_P2, np.float64)
    return points[np.argsort(points[:, 0], kind="stable")]


def _concave(points_P2: Floats) -> Floats:
    """Every point, lifted onto the highest line between two others where one passes above it."""
    cost, quality = points_P2.T
    lifted = [quality[0]]
    for x, y in points_P2[1:-1]:
        left, right = points_P2[cost < x], points_P2[cost > x]
        lines = [a[1] + (b[1] - a[1]) * (x - a[0]) / (b[0] - a[0]) for a in left for b in right]
        lifted.append(max([y, *lines]))
    return np.stack([cost, [*lifted, quality[-1]][: len(cost)]], axis=1)


def _non_decreasing(points_P2: Floats) -> Floats:
    """Without the points that are lower than the one before them, as the code removes them: in one pass."""
    falls = np.flatnonzero(np.diff(points_P2[:, 1]) < 0) + 1
    return np.delete(points_P2, falls, axis=0)
