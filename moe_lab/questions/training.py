"""Trains a question router on the items given, and decides on items held back whether it may route.

Legend: N items, C candidates, G groups.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from moe_lab.metrics.areas import CostRange, deferral_area, policy_points
from moe_lab.metrics.choices import choose, group_means
from moe_lab.questions.features import RawFeatures, fit_features
from moe_lab.questions.folds import deal_folds
from moe_lab.questions.heads import Calibration, Heads, Link, fit_calibration, fit_heads, plain_calibration
from moe_lab.questions.router import Mode, QuestionRouter, price_grid, relative_cost
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.table import ItemTable

_ITEMS_TO_COMPARE = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A router, and what the items held back said."""

    router: QuestionRouter
    validation: dict[str, float]  # area of the deferral curve of what was learnt, the group table, the zero router


def train_router(table: ItemTable, raw: RawFeatures, index: np.ndarray, spec: QuestionRouterSettings) -> Trained:
    """Trains on the items `index` of a table.

    A first router learns from all but `validation_share` of them; the rest calibrates it and decides the mode. Then
    the heads are fitted again to all of `index`, with that calibration. Duplicates never lie on both sides.
    """
    keys = [table.keys[i] for i in index]
    parts = max(2, round(1 / spec.validation_share))
    held = deal_folds(keys, parts, spec.seed + 1) == 0
    if held.all() or not held.any():
        held = np.arange(len(index)) % 2 == 0
    seen, unseen = index[~held], index[held]
    trial = _fit(table, raw, seen, spec, None)
    predicted = trial.heads(trial.features(raw.rows(unseen)))
    means_NC = trial.by_group(raw.group_N[unseen])
    calibration = fit_calibration(predicted, means_NC, table.quality_NC[unseen], trial.heads.link)
    # The areas are compared before the calibration: it has seen these outcomes.
    areas = _areas(table, trial, raw, unseen)
    router = dataclasses.replace(_fit(table, raw, index, spec, calibration), mode=_mode(areas))
    return Trained(router=router, validation=areas)


def _mode(areas: dict[str, float]) -> Mode:
    """What was learnt routes only if it beats both; else the group table if that beats the zero router."""
    if areas["learned"] > max(areas["group_table"], areas["zero_router"]):
        return "learned"
    return "group_table" if areas["group_table"] > areas["zero_router"] else "zero_router"


def _fit(
    table: ItemTable, raw: RawFeatures, index: np.ndarray, spec: QuestionRouterSettings, calibration: Calibration | None
) -> QuestionRouter:
    quality_NC, part = table.quality_NC[index], raw.rows(index)
    link: Link = "logistic" if table.is_probability else "identity"
    features = fit_features(part, spec.features, len(table.groups))
    cost_C, mean_C = table.cost_NC[index].mean(axis=0), quality_NC.mean(axis=0)
    settings = {"penalty": spec.penalty, "own_penalty": spec.own_penalty, "iterations": spec.iterations}
    x_ND = features(part)
    if spec.head == "difficulty":
        cheapest = int(np.argmin(cost_C))
        one = fit_heads(x_ND, quality_NC[:, [cheapest]], link, **settings)  # type: ignore[arg-type]
        heads = _only_knows(one, cheapest, mean_C)
    else:
        heads = fit_heads(x_ND, quality_NC, link, **settings)  # type: ignore[arg-type]
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
        calibration=calibration or plain_calibration(len(table.names), link),
        ladders=_ladders(table, index) if spec.monotone == "auto" else (),
    )


def _only_knows(one: Heads, candidate: int, mean_C: np.ndarray) -> Heads:
    """Heads for all candidates of which only one looks at the item; the others say their mean."""
    from moe_lab.questions.heads import inverse

    weight = np.zeros((len(one.weight_DC), len(mean_C)), np.float32)
    weight[:, candidate] = one.weight_DC[:, 0]
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


def _areas(table: ItemTable, router: QuestionRouter, raw: RawFeatures, index: np.ndarray) -> dict[str, float]:
    """Area of the deferral curve on some items: what was learnt, the group table, the zero router."""
    part = raw.rows(index)
    quality_NC, cost_NC = table.quality_NC[index], table.cost_NC[index]
    predictions = {
        "learned": router.learned(part),
        "group_table": router.by_group(part.group_N),
        "zero_router": np.tile(router.mean_C, (len(index), 1)),
    }
    over = CostRange.of(cost_NC.mean(axis=0))
    return {
        name: deferral_area(sweep(predicted, router.cost_C, quality_NC, cost_NC), over)
        for name, predicted in predictions.items()
    }


def sweep(
    predicted_NC: np.ndarray, cost_C: np.ndarray, quality_NC: np.ndarray, cost_NC: np.ndarray, points: int = 64
) -> np.ndarray:
    """(mean cost, mean quality) of each price's choice [P, 2]."""
    relative_C = relative_cost(cost_C)
    choices = [choose(-predicted_NC, relative_C, price) for price in price_grid(predicted_NC, cost_C, points)]
    return policy_points(choices, quality_NC, cost_NC)
