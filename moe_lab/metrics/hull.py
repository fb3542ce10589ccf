"""The zero router: what mixing fixed candidates at random reaches, the floor under every router.

Legend: V vertices of the hull. Points are rows of (cost, loss).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_lab.metrics.choices import Choice, Floats


@dataclass(frozen=True)
class ZeroRouter:
    """The best quality that mixing fixed candidates at random reaches at each cost: the floor of any router.

    `costs_V` rises strictly and `losses_V` falls strictly and convexly, from the cheapest candidate to the
    cheapest of the best. `candidates_V` are the vertices' indices among the `num_candidates` points given.
    """

    costs_V: Floats
    losses_V: Floats
    candidates_V: Choice
    num_candidates: int

    def at(self, cost: ArrayLike) -> Floats:
        """Loss at a cost: linear between vertices, flat to the right, infinite left of the cheapest."""
        cost = np.asarray(cost, np.float64)
        return np.where(self._affordable(cost), np.interp(cost, self.costs_V, self.losses_V), np.inf)

    def weights(self, cost: float) -> Floats:
        """How much of each candidate the mixture at `cost` uses [C]; sums to 1."""
        assert self._affordable(np.asarray(cost)), f"nothing costs as little as {cost}"
        weights_C = np.zeros(self.num_candidates)
        right = min(int(np.searchsorted(self.costs_V, cost)), len(self.costs_V) - 1)
        left = max(right - 1, 0)
        gap = self.costs_V[right] - self.costs_V[left]
        share = np.clip((cost - self.costs_V[left]) / gap, 0, 1) if gap > 0 else 1.0
        weights_C[self.candidates_V[left]] += 1 - share
        weights_C[self.candidates_V[right]] += share
        return weights_C

    def _affordable(self, cost: NDArray) -> NDArray[np.bool_]:
        # A mean over tokens that all chose the cheapest may round to just below its cost.
        return cost >= self.costs_V[0] * (1 - 1e-9)


def zero_router(points_C2: ArrayLike) -> ZeroRouter:
    """Lower convex hull of fixed candidates' (cost, loss), in any unit that is a mean over tokens or bytes.

    Take the points from the rows that the other routers were decided on, and apply `weights` to the test
    rows: vertices picked on the test rows flatter it.
    """
    points = np.asarray(points_C2, np.float64)
    assert points.ndim == 2, "points are rows of (cost, loss)"
    assert points.shape[1] == 2, "points are rows of (cost, loss)"
    assert len(points) > 0, "no points"
    assert np.isfinite(points).all(), "a point is not finite"
    vertices: list[int] = []
    for index in np.lexsort((points[:, 1], points[:, 0])):
        if vertices and points[index, 1] >= points[vertices[-1], 1]:
            continue
        while len(vertices) > 1 and not _turns_left(points, vertices[-2], vertices[-1], index):
            vertices.pop()
        vertices.append(int(index))
    chosen = np.asarray(vertices, np.intp)
    return ZeroRouter(points[chosen, 0], points[chosen, 1], chosen, len(points))


def _turns_left(points: Floats, a: int, b: int, c: int) -> bool:
    """Whether the path a, b, c bends upwards, so that b lies below the line from a to c."""
    (ax, ay), (bx, by), (cx, cy) = points[[a, b, c]]
    return bool((bx - ax) * (cy - ay) > (by - ay) * (cx - ax))
