"""What joining on a handful of items is worth: each candidate of a table left out in turn, and joined again.

Legend: N items, C candidates.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from moe_lab.metrics.areas import CostRange, deferral_area, policy_points
from moe_lab.metrics.choices import choose
from moe_lab.questions.features import raw_features
from moe_lab.questions.folds import evaluation_folds, outside
from moe_lab.questions.join import extended, fit_newcomer, join, similarity
from moe_lab.questions.router import QuestionRouter, price_grid, relative_cost
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.table import ItemTable
from moe_lab.questions.training import train_router


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Deferral area over all candidates of a table when one of them joined later; each item scored out of fold.

    `joined` has one figure for each draw of the handful; `prior` looks at no item of the newcomer's; `retrained` has
    every outcome of the newcomer in the training folds.
    """

    candidate: str
    joined: tuple[float, ...]
    prior: float
    retrained: float


def cold_start(
    table: ItemTable, spec: QuestionRouterSettings, candidate: str, items: int = 20, draws: int = 5
) -> ColdStart:
    """Trains a router without one candidate for each fold, and lets it join on `items` items of the other folds."""
    others = [name for name in table.names if name != candidate]
    rest, ordered = table.only(others), table.only([*others, candidate])
    raw, fold_N = raw_features(ordered, spec.features), evaluation_folds(ordered, spec)
    predicted = {name: np.empty_like(ordered.quality_NC) for name in ("prior", "retrained", *map(str, range(draws)))}
    for fold in range(int(fold_N.max()) + 1):
        inside = np.flatnonzero(fold_N == fold)
        seen, part = np.flatnonzero(outside(table, inside)), raw.rows(inside)
        first = train_router(rest, raw, seen, spec).router
        predicted["prior"][inside] = _without_items(first, ordered).predict(part)
        predicted["retrained"][inside] = train_router(ordered, raw, seen, spec).router.predict(part)
        for draw in range(draws):
            rng = np.random.default_rng((spec.seed, fold, draw))
            handful = ordered.rows(rng.choice(seen, min(items, len(seen)), replace=False)).only([candidate])
            predicted[str(draw)][inside] = join(first, rest.candidates, handful).router.predict(part)
    areas = {name: _area(ordered, values) for name, values in predicted.items()}
    joined = tuple(areas[str(draw)] for draw in range(draws))
    return ColdStart(candidate=candidate, joined=joined, prior=areas["prior"], retrained=areas["retrained"])


def _without_items(router: QuestionRouter, table: ItemTable) -> QuestionRouter:
    """The router with the last candidate of a table, of which it knows the card alone."""
    card, cost = table.candidates[-1], float(table.cost_C[-1])
    prior_C = similarity(card, cost, table.candidates[:-1], router.cost_C)
    none = np.zeros((0, len(prior_C)))
    made = fit_newcomer(none + 0.5, np.zeros(0), router.mean_C, prior_C, router.heads.link)
    return extended(router, card.name, cost, made)


def _area(table: ItemTable, predicted_NC: np.ndarray) -> float:
    relative_C = relative_cost(table.cost_C)
    choices = [choose(-predicted_NC, relative_C, price) for price in price_grid(predicted_NC, relative_C, 64)]
    return deferral_area(policy_points(choices, table.quality_NC, table.cost_NC), CostRange.of(table.cost_C))
