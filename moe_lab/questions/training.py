"""Trains a question router on the items given, and decides by items held back in turns whether it may route.

Legend: N items, C candidates, G groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from moe_lab.metrics.areas import area_by_item
from moe_lab.metrics.bootstrap import Interval, paired_difference_interval
from moe_lab.metrics.choices import choose, group_means
from moe_lab.questions.features import FeatureMap, RawFeatures, fit_features
from moe_lab.questions.folds import number_keys, outside, trial_parts
from moe_lab.questions.heads import Calibration, Heads, Link, fit_calibration, fit_heads, inverse, plain_calibration
from moe_lab.questions.neighbours import Embedding, Neighbours, fit_embedding
from moe_lab.questions.router import Mode, QuestionRouter, price_grid
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.table import ItemTable

_ITEMS_TO_COMPARE = 30
_NEIGHBOURS = 1 / 2  # of the blend


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A router, and what the items held back said."""

    router: QuestionRouter
    validation: dict[Mode, float]  # area of the deferral curve of what was learnt, the group table, the zero router
    gains: dict[str, Interval]  # of these areas, paired: `learned over group_table` and the like


@threadpool_limits.wrap(limits=1)  # its matrices are small: threads would wait for each other most of the time
def train_router(table: ItemTable, raw: RawFeatures, index: np.ndarray, spec: QuestionRouterSettings) -> Trained:
    """Trains on the items `index` of a table.

    Trial routers learn from all but a part of them each, so that every item is predicted once by a router that has not
    seen it; those predictions calibrate the router, which learns from all of `index`, and decide its mode. Duplicates
    never lie on both sides.
    """
    # Frequencies and directions look at no outcome, so the trial routers may have those of all training items.
    features = fit_features(raw.rows(index), spec.features, len(table.groups))
    embedding = _embedding(raw, index, features, spec)
    plain = plain_calibration(table.quality_NC[index].mean(axis=0), _link(table), _NEIGHBOURS if embedding else 0.0)
    trials = _trials(table, raw, index, spec, lambda seen: _fit(table, raw, seen, spec, features, embedding, plain))
    calibration = plain
    if spec.head == "gain":
        calibration = fit_calibration(trials.heads_NC, trials.neighbours_NC, table.quality_NC[index], plain)
    router = _fit(table, raw, index, spec, features, embedding, calibration)
    return Trained(
        router=dataclasses.replace(router, mode=choose_mode(trials.gains) if spec.abstain else "learned"),
        validation=trials.areas,
        gains=trials.gains,
    )


def choose_mode(gains: Mapping[str, Interval]) -> Mode:
    """What was learnt routes only if it surely gains over both; else the group table if it does over the zero router.

    Surely is with the whole interval. On equal terms the one that needs less is right: by the sign of a gain alone,
    every second router that has learnt nothing would route.
    """
    if all(gain.low > 0 for name, gain in gains.items() if name.startswith("learned over")):
        return "learned"
    found = gains.get("group_table over zero_router")
    return "group_table" if found is not None and found.low > 0 else "zero_router"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trials:
    """What trial routers say of the training items that they have not seen, before calibration.

    The areas are those of each trial's items by themselves, as a mean over items: predictions of two trials are not
    compared, for the mean of all but some items is high where those items' own is low.
    """

    heads_NC: np.ndarray
    neighbours_NC: np.ndarray
    areas: dict[Mode, float]
    gains: dict[str, Interval]


def _trials(
    table: ItemTable,
    raw: RawFeatures,
    index: np.ndarray,
    spec: QuestionRouterSettings,
    fit: Callable[[np.ndarray], QuestionRouter],
) -> _Trials:
    """Fits one router for each part of the training items on the others, and predicts the part with it."""
    part_N = trial_parts(table, index, spec)
    heads_NC, neighbours_NC = (np.empty((len(index), len(table.names))) for _ in range(2))
    area_N: dict[Mode, np.ndarray] = {name: np.empty(len(index)) for name in _compared(table)}
    for part in range(int(part_N.max()) + 1):
        inside = np.flatnonzero(part_N == part)
        unseen = index[inside]
        seen = index[outside(table, unseen)[index]]
        if not len(seen):  # all items look the same
            seen = np.setdiff1d(index, unseen)
        trial = fit(seen)
        heads_NC[inside], neighbours_NC[inside] = parts = trial.parts(raw.rows(unseen))
        for name, shares in _areas(table.rows(unseen), trial, trial.blended(*parts)).items():
            area_N[name][inside] = shares
    return _Trials(
        heads_NC=heads_NC,
        neighbours_NC=neighbours_NC,
        areas={name: float(shares.mean()) for name, shares in area_N.items()},
        gains=_gains(area_N, table.rows(index).keys, part_N),
    )


def _gains(area_N: dict[Mode, np.ndarray], keys: tuple[str, ...], part_N: np.ndarray) -> dict[str, Interval]:
    """Of each that needs learning over each that needs less, paired; items that look the same are drawn together."""
    unit_N = number_keys([f"{part} {key}" for part, key in zip(part_N, keys, strict=True)])
    part_U = part_N[np.unique(unit_N, return_index=True)[1]]
    units = np.bincount(unit_N)
    names = list(area_N)
    return {
        f"{better} over {simpler}": paired_difference_interval(
            np.bincount(unit_N, area_N[better]), np.bincount(unit_N, area_N[simpler]), units, strata=part_U
        )
        for place, better in enumerate(names)
        for simpler in names[place + 1 :]
    }


def _compared(table: ItemTable) -> tuple[Mode, ...]:
    """What a trial compares; where there are no groups there is no group table."""
    return ("learned", "group_table", "zero_router") if table.has_groups else ("learned", "zero_router")


def _link(table: ItemTable) -> Link:
    return "logistic" if table.is_probability else "identity"


def _embedding(
    raw: RawFeatures, index: np.ndarray, features: FeatureMap, spec: QuestionRouterSettings
) -> Embedding | None:
    if not spec.neighbours or spec.head == "difficulty":
        return None
    return fit_embedding(features(raw.rows(index)), features, spec.neighbours, spec.seed)


def _fit(
    table: ItemTable,
    raw: RawFeatures,
    index: np.ndarray,
    spec: QuestionRouterSettings,
    features: FeatureMap,
    embedding: Embedding | None,
    calibration: Calibration,
) -> QuestionRouter:
    quality_NC, part, link = table.quality_NC[index], raw.rows(index), _link(table)
    cost_C, mean_C = table.cost_NC[index].mean(axis=0), quality_NC.mean(axis=0)
    settings: dict[str, Any] = {
        "penalty": spec.penalty,
        "own_penalty": spec.own_penalty,
        "iterations": spec.iterations,
    }
    x_NX = features(part)
    if spec.head == "difficulty":
        cheapest = int(np.argmin(cost_C))
        one = fit_heads(x_NX, quality_NC[:, [cheapest]], link, **settings)
        heads = _only_knows(one, cheapest, mean_C)
    else:
        heads = fit_heads(x_NX, quality_NC, link, **settings)
    return QuestionRouter(
        names=table.names,
        groups=table.groups,
        number_names=table.number_names,
        mode="learned",
        cost_C=cost_C,
        mean_C=mean_C,
        group_mean_GC=group_means(quality_NC, raw.group_N[index], len(table.groups), shrink=spec.group_shrinkage),
        features=features,
        heads=heads,
        neighbours=None if embedding is None else Neighbours(embedding, embedding(x_NX), quality_NC.astype(np.float32)),
        calibration=calibration,
        ladders=_ladders(table, index) if spec.monotone == "auto" else (),
    )


def _only_knows(one: Heads, candidate: int, mean_C: np.ndarray) -> Heads:
    """Heads for all candidates of which only one looks at the item; the others say their mean."""
    weight = np.zeros((len(one.weight_XC), len(mean_C)), np.float32)
    weight[:, candidate] = one.weight_XC[:, 0]
    bias = np.asarray(inverse(mean_C, one.link), np.float64).copy()
    bias[candidate] = one.bias_C[0]
    return Heads(one.link, weight, bias)


def _ladders(table: ItemTable, index: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Families, from small to large, whose larger members are better in every group with enough items to tell."""
    families: dict[str, list[tuple[float, int]]] = {}
    for c, candidate in enumerate(table.candidates):
        if candidate.family is not None and candidate.size is not None:
            families.setdefault(candidate.family, []).append((candidate.size, c))
    groups = table.group_N[index]
    large = np.flatnonzero(np.bincount(groups, minlength=len(table.groups)) >= _ITEMS_TO_COMPARE)
    means_GC = group_means(table.quality_NC[index], groups, len(table.groups))[large]
    ladders = [tuple(c for _, c in sorted(members)) for members in families.values() if len(members) > 1]
    return tuple(ladder for ladder in ladders if len(large) and (np.diff(means_GC[:, list(ladder)], axis=1) >= 0).all())


def _areas(table: ItemTable, router: QuestionRouter, learned_NC: np.ndarray) -> dict[Mode, np.ndarray]:
    """What each item adds to the area of the deferral curve [N], by what was learnt and by what needs less."""
    predictions: dict[Mode, np.ndarray] = {
        "learned": learned_NC,
        "group_table": router.by_group(table.group_N),
        "zero_router": np.tile(router.mean_C, (len(table), 1)),
    }
    relative_C, points = router.relative_cost_C, 64
    return {
        name: area_by_item(
            [choose(-predicted, relative_C, price) for price in price_grid(predicted, relative_C, points)],
            table.quality_NC,
            table.cost_NC,
        )
        for name, predicted in predictions.items()
        if name in _compared(table)
    }
