"""Choices that need no learning: one candidate for all, one for each group, the best in hindsight.

Legend: N items (tokens or questions), C candidates, G groups. A choice is the index of a candidate for each item [N].
Cost is one number a candidate [C], or one for each item and candidate [N, C].
Ties in `loss + price * cost` go to the cheaper candidate, and between equally dear ones to the first.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Choice = NDArray[np.intp]


def fixed(candidate: int, items: int) -> Choice:
    """The choice of one candidate for all items."""
    return np.full(items, candidate, np.intp)


def choose(loss_NC: ArrayLike, cost: ArrayLike, price: float) -> Choice:
    """The candidate with the least `loss + price * cost` of each item [N]; the losses may be predicted ones."""
    loss, cost_NC = np.asarray(loss_NC, np.float64), np.asarray(cost, np.float64)
    cost_NC = np.broadcast_to(cost_NC, loss.shape)
    by_cost_NC = np.argsort(cost_NC, axis=1, kind="stable")
    total_NC = np.take_along_axis(loss + price * cost_NC, by_cost_NC, axis=1)
    return np.take_along_axis(by_cost_NC, np.argmin(total_NC, axis=1)[:, None], axis=1)[:, 0]


def best_fixed(loss_NC: ArrayLike, cost_C: ArrayLike, price: float) -> int:
    """The one candidate with the least mean `loss + price * cost`."""
    return int(choose(np.asarray(loss_NC, np.float64).mean(axis=0, keepdims=True), cost_C, price)[0])


def group_means(values_NC: ArrayLike, group_N: ArrayLike, num_groups: int, *, shrink: float = 0.0) -> Floats:
    """Mean of each group's rows [G, C], drawn towards the mean of all rows as by `shrink` further items of that mean.

    A group without items has the mean of all.
    """
    values, group = np.asarray(values_NC, np.float64), np.asarray(group_N)
    items_G = np.bincount(group, minlength=num_groups)
    sums_GC = np.stack([np.bincount(group, column, minlength=num_groups) for column in values.T], axis=1)
    means_GC = (sums_GC + shrink * values.mean(axis=0)) / np.maximum(items_G + shrink, 1e-300)[:, None]
    means_GC[items_G == 0] = values.mean(axis=0)
    return means_GC


def group_means_out_of_fold(
    values_NC: ArrayLike, group_N: ArrayLike, fold_N: ArrayLike, *, shrink: float = 0.0
) -> Floats:
    """The mean of each item's group over the items of the other folds [N, C]: what a group table knows of it."""
    values, group, fold = np.asarray(values_NC, np.float64), np.asarray(group_N), np.asarray(fold_N)
    known_NC = np.empty_like(values)
    for held in np.unique(fold):
        inside = fold == held
        assert not inside.all(), "one fold holds all items, so nothing is left to decide on"
        known_NC[inside] = group_means(values[~inside], group[~inside], int(group.max()) + 1, shrink=shrink)[
            group[inside]
        ]
    return known_NC


def group_table(
    loss_NC: ArrayLike, cost_C: ArrayLike, group_N: ArrayLike, price: float, *, num_groups: int | None = None
) -> Choice:
    """The best candidate of each group at a price, decided on the rows given; `table[test_group]` applies it.

    A group without items here gets the best fixed candidate.

    Returns:
        Candidates [G], with G = `num_groups` or the largest group + 1.
    """
    groups = num_groups if num_groups is not None else int(np.max(group_N)) + 1
    return choose(group_means(loss_NC, group_N, groups), cost_C, price)


def oracle(loss_NC: ArrayLike, cost: ArrayLike, price: float) -> Choice:
    """The best candidate of each item at a price, chosen with the outcome in sight: the bound of all.

    At price 0 it takes the least loss and, of those, the cheapest: an item that no candidate gets right runs the
    cheapest one.
    """
    return choose(loss_NC, cost, price)


def oracle_point(
    quality_NC: ArrayLike, cost: ArrayLike, *, unsolved: Literal["cheapest", "free"] = "cheapest"
) -> tuple[float, float]:
    """(mean cost, mean quality) of the oracle at price 0.

    What an item costs that no candidate solves (quality 0 throughout) is a convention: LLMRouterBench
    (`baselines/aggregators.py`) charges the cheapest candidate, RouterBench (`convertors/common.py`) nothing at all.
    """
    quality = np.asarray(quality_NC, np.float64)
    cost_NC = np.broadcast_to(np.asarray(cost, np.float64), quality.shape)
    picked = np.arange(len(quality)), oracle(-quality, cost_NC, 0.0)
    spent_N = cost_NC[picked]
    if unsolved == "free":
        spent_N = np.where(quality.max(axis=1) > 0, spent_N, 0.0)
    return float(spent_N.mean()), float(quality[picked].mean())


def regret(loss_NC: ArrayLike, cost: ArrayLike, price: float, choice_N: Choice) -> float:
    """Mean of `loss + price * cost` of a choice minus the oracle's at the same price; never negative."""
    loss = np.asarray(loss_NC, np.float64)
    bill_NC = loss + price * np.broadcast_to(np.asarray(cost, np.float64), loss.shape)
    return float((bill_NC[np.arange(len(loss)), choice_N] - bill_NC.min(axis=1)).mean())
