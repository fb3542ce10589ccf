"""Evaluates a question router out of fold: every item is scored by a router that saw neither it nor its twins.

Legend: N items, C candidates, P prices.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np

from moe_lab.metrics.areas import quality_hull
from moe_lab.metrics.choices import Choice, choose, fixed, group_means_out_of_fold
from moe_lab.questions.features import RawFeatures
from moe_lab.questions.folds import evaluation_folds, outside
from moe_lab.questions.results import CurveRole, FoldVerdict, RouterCost
from moe_lab.questions.router import QuestionRouter, price_grid, relative_cost
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.table import ItemTable
from moe_lab.questions.training import Trained, train_router

_TIMED_ITEMS = 256
_SIDE_BY_SIDE = 2000  # items; fewer are trained on before another process has started


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """What was predicted for each item without having seen it."""

    table: ItemTable
    fold_N: np.ndarray
    routed_NC: np.ndarray  # by the routers' modes
    learned_NC: np.ndarray  # by the heads, also where they abstained
    group_NC: np.ndarray  # means of the item's group in the other folds, or of all items where those have none of it
    mean_NC: np.ndarray  # means of all items: throwing dice is not learnt, so there is nothing to hold back
    verdicts: tuple[FoldVerdict, ...]
    newcomers: int = 0  # the last columns are of candidates that joined; `before` does without them

    @property
    def known(self) -> int:
        """How many candidates were there before others joined."""
        return len(self.table.names) - self.newcomers

    def predicted(self, role: CurveRole) -> np.ndarray:
        """What a router by that name predicts [N, C]; the oracle predicts the outcome itself."""
        if role == "before":
            return self.routed_NC[:, : self.known]
        if role == "difficulty":
            return self.difficulty_NC
        if role == "oracle":
            return self.table.quality_NC
        return {
            "routed": self.routed_NC,
            "learned": self.learned_NC,
            "group_table": self.group_NC,
            "zero_router": self.mean_NC,
        }[role]

    @property
    def difficulty_NC(self) -> np.ndarray:
        """The baseline that knows only how the cheapest candidate will do; of the others it knows the mean."""
        cheapest = int(np.argmin(self.table.cost_C))
        predicted = self.mean_NC.copy()
        predicted[:, cheapest] = self.learned_NC[:, cheapest]
        return predicted

    def choices(self, role: CurveRole, points: int) -> tuple[list[float], list[Choice]]:
        """Prices, and each one's choice [N]."""
        if role == "zero_router":
            return self._mixed_candidates()
        predicted = self.predicted(role)
        # The oracle knows what each item will cost as well.
        cost = relative_items(self.table) if role == "oracle" else relative_cost(self.table.cost_C)
        cost = cost[..., : predicted.shape[1]]
        prices = price_grid(predicted, cost, points)
        return prices, [choose(-predicted, cost, price) for price in prices]

    def _mixed_candidates(self) -> tuple[list[float], list[Choice]]:
        """The candidates that the zero router mixes; each price is the last at which a dearer one would be taken."""
        hull = quality_hull(np.stack([relative_cost(self.table.cost_C), self.mean_NC[0]], axis=1))
        slopes = np.diff(-hull.losses_V) / np.diff(hull.costs_V)
        prices = [0.0, *slopes[::-1].tolist()]
        return prices, [fixed(int(candidate), len(self.table)) for candidate in hull.candidates_V[::-1]]


def relative_items(table: ItemTable) -> np.ndarray:
    """Cost of every item and candidate in units of the dearest candidate's mean."""
    most = float(table.cost_C.max())
    return table.cost_NC / most if most > 0 else np.zeros_like(table.cost_NC)


def score_out_of_fold(
    table: ItemTable,
    raw: RawFeatures,
    spec: QuestionRouterSettings,
    told: Callable[[int], None] = lambda done: None,
) -> tuple[OutOfFold, Trained]:
    """Trains one router for each fold on the other folds and predicts the fold with it; and the router that is kept.

    That one is trained on all items. Routers of large tables are trained side by side, in a process for each core.
    """
    fold_N = evaluation_folds(table, spec)
    folds = int(fold_N.max()) + 1
    inside = [np.flatnonzero(fold_N == fold) for fold in range(folds)]
    nothing = np.zeros(0, np.int64)
    work = [(np.flatnonzero(outside(table, items)), items) for items in inside] + [(np.arange(len(table)), nothing)]
    cores = joblib.cpu_count() if len(table) >= _SIDE_BY_SIDE else 1
    calls = (joblib.delayed(_train_and_predict)(table, raw, seen, unseen, spec) for seen, unseen in work)
    done = []
    for trained in joblib.Parallel(n_jobs=min(cores, len(work)), return_as="generator")(calls):
        done.append(trained)
        told(len(done))
    *of_folds, (kept, _, _) = done
    routed, learned = np.empty_like(table.quality_NC), np.empty_like(table.quality_NC)
    # Not the means of the other folds: those are low where the fold's own are high, and by them one chooses worse than
    # by dice.
    means = table.quality_NC.mean(axis=0)
    verdicts = []
    for fold, (items, (trained, routed_NC, learned_NC)) in enumerate(zip(inside, of_folds, strict=True)):
        # One that abstains to dice throws those of the zero router.
        routed[items] = means if trained.router.mode == "zero_router" else routed_NC
        learned[items] = learned_NC
        group = table.groups[table.group_N[items[0]]] if spec.folds == "groups" else None
        verdicts.append(
            FoldVerdict(
                fold=fold,
                group=group,
                mode=trained.router.mode,
                validation=dict(trained.validation),
                gains=trained.gains,
            )
        )
    groups = mean_NC = np.tile(means, (len(table), 1))
    if spec.folds != "groups":
        groups = group_means_out_of_fold(table.quality_NC, table.group_N, fold_N, shrink=spec.group_shrinkage)
    scored = OutOfFold(
        table=table,
        fold_N=fold_N,
        routed_NC=routed,
        learned_NC=learned,
        group_NC=groups,
        mean_NC=mean_NC,
        verdicts=tuple(verdicts),
    )
    return scored, kept


def _train_and_predict(
    table: ItemTable, raw: RawFeatures, seen: np.ndarray, unseen: np.ndarray, spec: QuestionRouterSettings
) -> tuple[Trained, np.ndarray, np.ndarray]:
    """A router trained on some items, and what it says of others [N, C]: by its mode, and by its heads."""
    trained = train_router(table, raw, seen, spec)
    part = raw.rows(unseen)
    learned_NC = trained.router.learned(part)
    return trained, learned_NC if trained.router.mode == "learned" else trained.router.predict(part), learned_NC


def measure_router(router: QuestionRouter, table: ItemTable) -> RouterCost:
    """Times the router on whole questions, reading the text included, on one batch of them."""
    batch = table.rows(np.arange(min(_TIMED_ITEMS, len(table))))
    router.route(batch, 0.1)
    spent: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        router.route(batch, 0.1)
        spent.append(time.perf_counter() - started)
    return RouterCost(
        parameters=router.parameters,
        microseconds_per_question=round(min(spent) / len(batch) * 1e6, 1),
        questions_per_batch=len(batch),
    )


def plain(value: Any) -> Any:
    """A float that JSON can hold, or None."""
    return float(value) if np.isfinite(value) else None
