"""Small tables whose truth is known: which words make which candidate right."""

from __future__ import annotations

import numpy as np

from moe_lab.questions.evaluate import OutOfFold, score_out_of_fold
from moe_lab.questions.features import raw_features
from moe_lab.questions.router import QuestionRouter
from moe_lab.questions.spec import QuestionFeatures, QuestionRouterSettings
from moe_lab.questions.table import ItemCandidate, ItemTable, make_table
from moe_lab.questions.training import Trained, train_router

SMALL = ItemCandidate(name="small", size=1, family="toy")
LARGE = ItemCandidate(name="large", size=10, family="toy")
QUICK = QuestionRouterSettings(
    features=QuestionFeatures(buckets=1 << 10), penalty=1.0, neighbours=10, iterations=10, resamples=30, prices=24
)

_TOPICS = ("algebra proof", "capital city", "poem verse")
_FILLER = ["the", "of", "a", "to", "in", "which", "what", "one", "some", "any", "most", "least", "first", "last"]


def word_table(items: int = 400, seed: int = 0, *, permuted: bool = False) -> ItemTable:
    """Three topics: on the first only the large candidate is right, on the second both, on the third neither.

    So a question that the small one fails is no reason to run the large one. Each outcome is turned around with a
    chance of 0.1; `permuted` outcomes belong to other questions.
    """
    rng = np.random.default_rng(seed)
    topic_N = rng.integers(0, 3, items)
    text = [f"{_TOPICS[topic]} {' '.join(rng.choice(_FILLER, 8))} {n}" for n, topic in enumerate(topic_N)]
    right_NC = np.array([[0, 1], [1, 1], [0, 0]], float)[topic_N]
    right_NC = np.where(rng.random(right_NC.shape) < 0.1, 1 - right_NC, right_NC)
    if permuted:
        right_NC = right_NC[rng.permutation(items)]
    group = [("left", "right")[n % 2] for n in range(items)]  # says nothing
    return make_table("words", (SMALL, LARGE), right_NC, [1.0, 10.0], text=text, group=group)


def ladder_table(items: int = 300, seed: int = 0, candidates: int = 3) -> ItemTable:
    """Numbers only: candidate c is right on items easier than c, all of one family."""
    rng = np.random.default_rng(seed)
    hardness = rng.random(items)
    strength_C = (np.arange(candidates) + 1) / (candidates + 0.5)
    right_NC = (hardness[:, None] + 0.1 * rng.normal(size=(items, candidates)) < strength_C).astype(float)
    made = tuple(ItemCandidate(name=f"m{c}", size=c + 1, family="ladder") for c in range(candidates))
    return make_table("ladder", made, right_NC, np.arange(candidates) + 1.0, numbers={"hardness": hardness})


def router_of(table: ItemTable, spec: QuestionRouterSettings = QUICK) -> QuestionRouter:
    """A router that learned from all items."""
    return train_router(table, raw_features(table, spec.features), np.arange(len(table)), spec).router


def scored_by(table: ItemTable, spec: QuestionRouterSettings = QUICK) -> tuple[OutOfFold, Trained]:
    """Out-of-fold predictions, and the router that is kept."""
    return score_out_of_fold(table, raw_features(table, spec.features), spec)
