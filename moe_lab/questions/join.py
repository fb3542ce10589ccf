"""A candidate joins a trained router on a handful of items; what the router says of the others does not change.

Its quality is read off the others' predictions: on the linear scale of the link it is a weighted sum of theirs and an
offset. Before any item the weights go by how alike the candidates are in size and cost, and the offset is 0. The items
move both, against a ridge that holds them there: a few items tell how good the newcomer is, and little about on what.

Legend: N items, C candidates of the router's heads, J candidates that joined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from moe_lab.errors import LabError
from moe_lab.questions.heads import Link, inverse, link_loss
from moe_lab.questions.router import Joined, QuestionRouter
from moe_lab.questions.table import ItemCandidate, ItemTable

_OFFSET_SPREAD = 0.5  # logits, or units of the items' spread around what the prior says
_WEIGHT_SPREAD = 0.1
_FAMILY = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joining:
    """A router with its newcomers, and what their items said of each."""

    router: QuestionRouter
    reports: tuple[JoinReport, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinReport:
    """Mean quality of a newcomer on its items: measured, and predicted before and after looking at them.

    The losses are per item: of what was said before any item was seen, and of what is said of each item from the
    others. The second should be the lower one.
    """

    name: str
    items: int
    measured: float
    before: float
    after: float
    loss_before: float
    loss_left_out: float


def join(router: QuestionRouter, cards: Sequence[ItemCandidate], table: ItemTable) -> Joining:
    """The router with all candidates of a table that it does not know yet.

    Args:
        router: trained; its own candidates' predictions stay the same bits.
        cards: of the candidates that its heads know, in their order.
        table: a handful of items with the newcomers' outcomes, costs, sizes and families.
    """
    new = [c for c, name in enumerate(table.names) if name not in router.names]
    if not new:
        raise LabError(
            f"{table.name}: the router knows {', '.join(table.names)} already; name a candidate that is new to it, "
            "or train it anew"
        )
    if not len(table):
        raise LabError(f"{table.name}: no items; measure the newcomer on a few, 20 say")
    link, heads = router.heads.link, len(router.heads.bias_C)
    if link == "logistic" and not table.is_probability:
        raise LabError(f"{table.name}: this router's outcomes lie between 0 and 1; give it scores of that kind")
    assert len(cards) == heads, "one card for each candidate that the heads know"
    seen_NC = router.predict(router.read(table))[:, :heads]
    reports = []
    for c in new:
        fit = newcomer_fit(router, cards, table, c, seen_NC)
        made, report = _fitted(table.names[c], seen_NC, table.quality_NC[:, c], fit, link)
        router = extended(router, table.names[c], float(table.cost_C[c]), made)
        reports.append(report)
    return Joining(router=router, reports=tuple(reports))


def newcomer_fit(
    router: QuestionRouter, cards: Sequence[ItemCandidate], table: ItemTable, newcomer: int, seen_NC: np.ndarray
) -> Callable[[np.ndarray], Joined]:
    """From the indices of some of the table's items to what they make of the newcomer in a column of the table.

    `seen_NC` is what the router says of all its items.
    """
    link, heads, quality_N = router.heads.link, len(router.heads.bias_C), table.quality_NC[:, newcomer]
    card, cost = table.candidates[newcomer], float(table.cost_C[newcomer])
    prior_C = similarity(card, cost, cards, router.cost_C[:heads])
    return lambda index: fit_newcomer(seen_NC[index], quality_N[index], router.mean_C[:heads], prior_C, link)


def extended(router: QuestionRouter, name: str, cost: float, newcomer: Joined) -> QuestionRouter:
    """The router with one more candidate behind the others."""
    link, heads = router.heads.link, len(router.heads.bias_C)

    def beside(quality_RC: np.ndarray) -> np.ndarray:
        return np.concatenate([quality_RC, newcomer(quality_RC[:, :heads], link)], axis=1)

    return dataclasses.replace(
        router,
        names=(*router.names, name),
        cost_C=np.append(router.cost_C, cost),
        mean_C=beside(router.mean_C[None])[0],
        group_mean_GC=beside(router.group_mean_GC),
        joined=newcomer if router.joined is None else router.joined.and_then(newcomer),
    )


def similarity(card: ItemCandidate, cost: float, cards: Sequence[ItemCandidate], cost_C: np.ndarray) -> np.ndarray:
    """How much each candidate tells of a newcomer before it has run [C]; sums to 1.

    The ratio of the smaller to the larger of the two sizes within a family, of the two costs elsewhere: sizes compare
    within a family only. A member of the family counts double.
    """
    alike = np.array([_ratio(card, cost, other, float(c)) for other, c in zip(cards, cost_C, strict=True)])
    return alike / alike.sum() if alike.sum() > 0 else np.full(len(alike), 1 / len(alike))


def fit_newcomer(
    quality_NC: np.ndarray, quality_N: np.ndarray, mean_C: np.ndarray, prior_C: np.ndarray, link: Link
) -> Joined:
    """The most probable offset and weights given some items, or the prior where there are none.

    Minimises the summed loss of the items plus `offset^2 / (2 * 0.5^2) + |weight - prior|^2 / (2 * 0.1^2)`; the two
    spreads chose best of those tried on five models of MMLU-Pro, see docs/outcome-tables.md.
    """
    from scipy.optimize import minimize

    middle_C = inverse(mean_C, link)
    away_NC = inverse(quality_NC, link) - middle_C
    at_prior_N = away_NC @ prior_C + prior_C @ middle_C
    scale = 1.0
    if link == "identity" and len(quality_N) > 1:
        scale = max(float((quality_N - at_prior_N).std()), 1e-12)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        z_N = at_prior_N / scale + flat[0] * _OFFSET_SPREAD + away_NC @ flat[1:] * (_WEIGHT_SPREAD / scale)
        loss, slope_N = link_loss(z_N, quality_N / scale, link)
        slope = np.concatenate([[slope_N.sum() * _OFFSET_SPREAD], away_NC.T @ slope_N * (_WEIGHT_SPREAD / scale)])
        return loss + float(flat @ flat) / 2, slope + flat

    best = minimize(objective, np.zeros(1 + len(prior_C)), jac=True, method="L-BFGS-B").x
    weight_C = prior_C + best[1:] * _WEIGHT_SPREAD
    # The offset is from the prior's mean; the weights turn around the candidates' means.
    bias = best[0] * _OFFSET_SPREAD * scale + prior_C @ middle_C - weight_C @ middle_C
    return Joined(weight_C[:, None], np.array([bias]))


def _ratio(card: ItemCandidate, cost: float, other: ItemCandidate, other_cost: float) -> float:
    related = card.family is not None and card.family == other.family
    a, b = cost, other_cost
    if related and card.size and other.size:
        a, b = card.size, other.size
    ratio = 1.0 if a == b else min(a, b) / max(a, b)
    return ratio * (_FAMILY if related else 1.0)


def _fitted(
    name: str, seen_NC: np.ndarray, quality_N: np.ndarray, fit: Callable[[np.ndarray], Joined], link: Link
) -> tuple[Joined, JoinReport]:
    """The newcomer, and what each of its items says of it when it is left out."""
    items = np.arange(len(quality_N))

    def said(by: Joined, index: np.ndarray) -> np.ndarray:
        return by(seen_NC[index], link)[:, 0]

    def loss(predicted_N: np.ndarray) -> float:
        return link_loss(inverse(predicted_N, link), quality_N, link)[0] / len(items)

    made, before_N = fit(items), said(fit(items[:0]), items)
    left_out_N = np.concatenate([said(fit(np.delete(items, n)), items[[n]]) for n in items])
    report = JoinReport(
        name=name,
        items=len(items),
        measured=float(quality_N.mean()),
        before=float(before_N.mean()),
        after=float(said(made, items).mean()),
        loss_before=loss(before_N),
        loss_left_out=loss(left_out_N),
    )
    return made, report
