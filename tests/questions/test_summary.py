"""What a report is drawn from, on tables whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_lab.questions.evaluate import score_out_of_fold
from moe_lab.questions.results import RouterCost, RouteResults
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.summary import summarise
from moe_lab.questions.table import ItemTable
from tests.questions.synthetic import QUICK, ladder_table

COST = RouterCost(parameters=1, microseconds_per_question=1.0, questions_per_batch=1)


def results_of(table: ItemTable, spec: QuestionRouterSettings = QUICK) -> RouteResults:
    scored, _ = score_out_of_fold(table, spec)
    return summarise(scored, spec, name="lab/toy", mode="learned", router_cost=COST, warnings=[], seconds=1.0)


def test_costs_that_differ_by_item_are_swept_to_the_cheapest_candidate() -> None:
    """Short items are cheap: at a price that the mean cost says is high, the oracle still buys on them."""
    table = ladder_table(300)
    length_N = np.random.default_rng(0).gamma(0.5, size=300) + 0.01
    table = dataclasses.replace(table, cost_NC=table.cost_NC * length_N[:, None])
    results = results_of(table)
    ends = {curve.role: curve.points[0].cost for curve in results.curves if curve.role != "fixed"}
    assert ends == pytest.approx(dict.fromkeys(ends, table.cost_C.min()))
    areas = {role: results.figure("AIQ", role) for role in ("oracle", "routed", "zero_router")}
    assert areas["oracle"] > areas["routed"] > areas["zero_router"]


def test_a_resample_in_which_another_candidate_is_the_cheapest_counts_too() -> None:
    table = ladder_table(60, candidates=2)
    noise = np.random.default_rng(1).gamma(0.5, size=table.cost_NC.shape)
    table = dataclasses.replace(table, cost_NC=noise, candidates=table.candidates)
    third = dataclasses.replace(
        table,
        candidates=(*table.candidates, dataclasses.replace(table.candidates[0], name="m2")),
        outcome_NC=np.concatenate([table.outcome_NC, table.outcome_NC[:, :1]], axis=1),
        cost_NC=np.concatenate([noise, noise[::-1, :1] * 1.01], axis=1),
    )
    assert np.isfinite(results_of(third).figure("AIQ") or np.nan)
