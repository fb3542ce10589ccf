"""Measures a router before and after candidates joined it, on questions with the outcomes of all of them.

A question that the newcomers joined on is predicted with itself left out of what they joined on. Of the others, the
router says the same bits before and after.

Legend: N items of the measured table, C candidates, those that joined last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moe_lab.errors import LabError
from moe_lab.metrics.bootstrap import Interval, ratio_interval
from moe_lab.metrics.choices import Choice, choose
from moe_lab.questions.evaluate import OutOfFold, measure_router
from moe_lab.questions.folds import number_keys
from moe_lab.questions.join import Joining, JoinReport, newcomer_fit
from moe_lab.questions.results import NewcomerRow, RouteResults
from moe_lab.questions.router import QuestionRouter, relative_cost
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.summary import summarise
from moe_lab.questions.table import ItemCandidate, ItemTable

_SEEN = (
    "What is said of the candidates that were there before comes from the router as it was trained. Questions that it "
    "learnt from flatter both curves, and may shift what joining gained: measure on others where there are some."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinedOn:
    """A router before and after, and the items that its newcomers joined on."""

    before: QuestionRouter
    joining: Joining
    cards: Sequence[ItemCandidate]  # of the candidates that the heads know
    items: ItemTable


def measure_joined(
    made: JoinedOn,
    measured: ItemTable,
    spec: QuestionRouterSettings,
    *,
    name: str,
    warnings: Sequence[str],
    seconds: float,
) -> RouteResults:
    """All that a report shows of a router that candidates joined.

    Args:
        measured: questions with the outcomes of all candidates; those that the newcomers joined on may be among them.
        spec: how many prices, resamples, and the seed.
    """
    router = made.joining.router
    scored, left_out = score_joined(made, measured)
    results = summarise(
        scored,
        spec,
        name=name,
        mode=router.mode,
        router_cost=measure_router(router, scored.table),
        warnings=[*warnings, _SEEN],
        seconds=seconds,
    )
    prices, choices = scored.choices("routed", spec.prices)
    shown = choose(-scored.routed_NC, relative_cost(scored.table.cost_C), results.shown_price)
    rows = [_row(report, scored, shown, prices, choices) for report in made.joining.reports]
    return results.model_copy(update={"newcomers": tuple(rows), "left_out": left_out})


def score_joined(made: JoinedOn, measured: ItemTable) -> tuple[OutOfFold, int]:
    """What is said of every question, and how many of them the newcomers joined on."""
    router = made.joining.router
    if lacking := [name for name in router.names if name not in measured.names]:
        raise LabError(
            f"{measured.name}: has no outcomes of {', '.join(lacking)}, and a report needs those of all candidates; "
            "add their columns, or name another table in measured_on"
        )
    table = measured.only(router.names)
    raw = router.read(table)
    by_mode = {
        mode: dataclasses.replace(router, mode=mode).predict(raw) for mode in ("learned", "group_table", "zero_router")
    }
    item_N = _joined_on(router, table, made.items)
    learned = _left_out(made, by_mode["learned"], item_N)
    routed = learned if router.mode == "learned" else _left_out(made, by_mode[router.mode], item_N)
    scored = OutOfFold(
        table=table,
        fold_N=number_keys(table.keys),
        routed_NC=routed,
        learned_NC=learned,
        group_NC=by_mode["group_table"],
        mean_NC=by_mode["zero_router"],
        verdicts=(),
        newcomers=len(made.joining.reports),
    )
    return scored, sum(len(items) > 0 for items in item_N)


def _joined_on(router: QuestionRouter, table: ItemTable, items: ItemTable) -> list[np.ndarray]:
    """For each question, the indices of the items that look the same to the router [N]."""
    places: dict[str, list[int]] = {}
    for index, key in enumerate(_keys(router, items)):
        places.setdefault(key, []).append(index)
    return [np.array(places.get(key, []), np.intp) for key in _keys(router, table)]


def _keys(router: QuestionRouter, table: ItemTable) -> tuple[str, ...]:
    # Two tables may have further numbers, or the same in another order.
    order = [table.number_names.index(name) for name in router.number_names]
    return dataclasses.replace(table, number_NF=table.number_NF[:, order]).keys


def _left_out(made: JoinedOn, predicted_NC: np.ndarray, item_N: list[np.ndarray]) -> np.ndarray:
    """The predictions [N, C], the newcomers' by fits without the question that is predicted."""
    link, heads = made.before.heads.link, len(made.before.heads.bias_C)
    every, found_NC = np.arange(len(made.items)), predicted_NC.copy()
    seen_NC = made.before.predict(made.before.read(made.items))[:, :heads]
    for report in made.joining.reports:
        fit = newcomer_fit(made.before, made.cards, made.items, made.items.names.index(report.name), seen_NC)
        column = made.joining.router.names.index(report.name)
        for n, items in enumerate(item_N):
            if len(items):
                newcomer = fit(np.delete(every, items))
                found_NC[n, column] = newcomer(predicted_NC[[n], :heads], link)[0, 0]
    return found_NC


def _row(
    report: JoinReport, scored: OutOfFold, shown: Choice, prices: Sequence[float], choices: Sequence[Choice]
) -> NewcomerRow:
    column = scored.table.names.index(report.name)
    shares = [float((choice == column).mean()) for choice in choices]
    most = int(np.argmax(shares))
    return NewcomerRow(
        name=report.name,
        items=report.items,
        measured=report.measured,
        by_card=report.before,
        by_items=report.after,
        loss_by_card=report.loss_before,
        loss_by_other_items=report.loss_left_out,
        share=_share(shown == column, scored.table),
        greatest_share=shares[most],
        greatest_share_price=prices[most],
    )


def _share(given_N: np.ndarray, table: ItemTable) -> Interval:
    """The share of questions with its interval; those that look the same are drawn together."""
    unit_N = number_keys(table.keys)
    return ratio_interval(np.bincount(unit_N, given_N), np.bincount(unit_N))
