"""What a report is drawn from, on tables whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_lab.metrics.published import aiq_routerbench_code
from moe_lab.questions.results import RouterCost, RouteResults
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.summary import summarise
from moe_lab.questions.table import ItemTable
from moe_lab.reports.route_report import render_route_report
from tests.questions.synthetic import QUICK, ladder_table, scored_by, word_table

COST = RouterCost(parameters=1, microseconds_per_question=1.0, questions_per_batch=1)


def results_of(table: ItemTable, spec: QuestionRouterSettings = QUICK) -> RouteResults:
    scored, _ = scored_by(table, spec)
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


@pytest.mark.slow
def test_the_router_is_compared_with_the_group_table_at_the_tables_own_costs() -> None:
    table = word_table(300)
    # Groups that tell a little: one has more questions that only the large candidate gets right.
    half_N = np.array(["proof" in text for text in table.text_N or ()]) ^ (np.random.default_rng(0).random(300) < 0.3)
    results = results_of(dataclasses.replace(table, group_N=half_N.astype(np.int64)))
    assert results.groups_tell
    curves = {curve.role: curve.points for curve in results.curves}
    routed = sorted((point.cost, point.quality) for point in curves["routed"])
    found = [point for point in curves["group_table"] if point.routed_difference is not None]
    assert len(found) == min(9, len(curves["group_table"]))
    for point in found:
        assert point.routed_difference is not None
        expected = np.interp(point.cost, *zip(*routed, strict=True)) - point.quality
        assert point.routed_difference.mean == pytest.approx(expected)
    # At both ends all questions go to one candidate; between them the words say more than the groups do.
    above, below, of = results.beside_group_table
    assert above >= 1
    assert below == 0
    assert of == len(found)
    assert f"At {above} of {of} of the group table" in render_route_report(results)
    assert not any(point.routed_difference for role in ("routed", "oracle") for point in curves[role])


def test_figures_by_public_code_and_what_was_measured_are_handed_on() -> None:
    table = dataclasses.replace(word_table(200), outcome_unit="points", cost_unit="cents", licence="CC0-1.0")
    results = results_of(table)
    assert (results.outcome_unit, results.cost_unit, results.table_licence) == ("points", "cents", "CC0-1.0")
    for curve in results.curves:
        if curve.role in ("routed", "zero_router"):
            points = [(point.cost, point.quality) for point in curve.points]
            by_code = aiq_routerbench_code(points, table.cost_C.max())
            assert results.figure("AIQ (RouterBench code)", curve.role) == pytest.approx(by_code)


@pytest.mark.slow
def test_the_interval_of_apgr_is_that_of_questions_drawn_anew() -> None:
    """Of a figure that is a mean over items it narrows as one over the root of their number."""
    widths = []
    for items in (100, 900):
        results = results_of(word_table(items), QUICK.model_copy(update={"resamples": 200}))
        [apgr] = [f for f in results.figures if (f.metric, f.role) == ("APGR", "routed")]
        assert apgr.interval is not None
        assert apgr.interval.low < apgr.value < apgr.interval.high
        widths.append(apgr.interval.high - apgr.interval.low)
    assert widths[0] / widths[1] == pytest.approx(3, rel=0.3)


def test_permuted_outcomes_are_not_above_the_group_table() -> None:
    above, _, of = results_of(word_table(300, 3, permuted=True)).beside_group_table
    assert above <= of / 3
