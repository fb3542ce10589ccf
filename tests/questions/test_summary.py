"""What a report is drawn from, on tables whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_lab.evaluation.route_claims import claimed_gains, describe_doubts
from moe_lab.evaluation.route_report import render_route_report
from moe_lab.metrics.bootstrap import Interval
from moe_lab.questions.evaluate import OutOfFold
from moe_lab.questions.results import AREA, Figure, RouterCost, RouteResults
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.summary import summarise
from moe_lab.questions.table import ItemTable
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


def test_permuted_outcomes_are_not_above_the_group_table() -> None:
    above, _, of = results_of(word_table(300, 3, permuted=True)).beside_group_table
    assert above <= of / 3


def drawn(results: RouteResults, role: str, costs: tuple[float, ...]) -> np.ndarray:
    """The height of a line of the figure."""
    [points] = [curve.points for curve in results.curves if curve.role == role]
    return np.interp(costs, [p.cost for p in points], [p.quality for p in points])


def test_the_band_is_of_the_lines_that_are_drawn() -> None:
    table = word_table(300)
    results = results_of(table)
    band = results.band
    routed, zero = (drawn(results, role, band.cost) for role in ("routed", "zero_router"))
    assert [at.mean for at in band.quality] == pytest.approx(routed)
    assert [at.mean for at in band.difference_to_zero] == pytest.approx(routed - zero)
    gain = results.gained("zero_router")
    assert gain is not None
    fine = np.linspace(band.cost[0], band.cost[-1], 5001)
    difference = drawn(results, "routed", tuple(fine)) - drawn(results, "zero_router", tuple(fine))
    assert gain.mean == pytest.approx(difference.mean(), abs=1e-3)
    assert gain.low > 0
    # Of 300 outcomes of 0 and 1 a mean is known to about 0.056 on each side.
    for at in band.quality[5:15]:
        assert 0.06 < at.high - at.low < 0.15
    assert any(at.high - at.low > 0.02 for at in band.difference_to_zero)
    assert (band.difference_to_zero[0].low, band.difference_to_zero[0].high) == pytest.approx((0, 0))


def twice(scored: OutOfFold) -> OutOfFold:
    """Every item two times, which is one item twice."""
    every = np.tile(np.arange(len(scored.table)), 2)
    names = ("fold_N", "routed_NC", "learned_NC", "group_NC", "mean_NC")
    return dataclasses.replace(
        scored, table=scored.table.rows(every), **{name: getattr(scored, name)[every] for name in names}
    )


def test_twins_say_nothing_new() -> None:
    """Drawn together they leave every interval what it was; as strangers they would narrow all of them."""
    scored, _ = scored_by(word_table(150))
    kind = {"name": "lab/toy", "mode": "learned", "router_cost": COST, "warnings": [], "seconds": 1.0}
    once, two = (summarise(found, QUICK, **kind) for found in (scored, twice(scored)))  # type: ignore[arg-type]
    for first, second in zip(once.band.difference_to_zero, two.band.difference_to_zero, strict=True):
        assert (second.low, second.high) == pytest.approx((first.low, first.high), abs=1e-9)
    for figure, same in zip(once.figures, two.figures, strict=True):
        assert (figure.metric, figure.role) == (same.metric, same.role)
        if figure.interval is not None and same.interval is not None:
            bounds = (figure.interval.low, figure.interval.high)
            assert (same.interval.low, same.interval.high) == pytest.approx(bounds, abs=1e-9)
    [table] = [curve.points for curve in once.curves if curve.role == "group_table"]
    [again] = [curve.points for curve in two.curves if curve.role == "group_table"]
    for point, same_point in zip(table, again, strict=True):
        if point.routed_difference is not None and same_point.routed_difference is not None:
            assert same_point.routed_difference.low == pytest.approx(point.routed_difference.low, abs=1e-9)


def test_a_dear_candidate_that_is_worse_leaves_no_gap_to_recover() -> None:
    """A share of a gap below zero would call every gain a loss."""
    table = word_table(200)
    worse = dataclasses.replace(table, outcome_NC=table.outcome_NC[:, ::-1])
    results = results_of(worse)
    assert results.figure("APGR") is None
    assert results.figure(AREA) is not None
    assert results_of(table).figure("APGR") is not None


def gains(**given: tuple[float, float]) -> RouteResults:
    """Results with these intervals by metric, over the zero router."""
    results = results_of(word_table(60))
    names = {"area": AREA, "aiq": "AIQ", "apgr": "APGR"}
    found = tuple(
        Figure(
            metric=f"{names[name]} gained over",
            role="zero_router",
            value=(low + high) / 2,
            interval=Interval(mean=(low + high) / 2, low=low, high=high),
        )
        for name, (low, high) in given.items()
    )
    return results.model_copy(update={"figures": found})


def test_the_page_says_where_a_published_metric_disagrees_with_the_curve() -> None:
    assert gains(area=(0.1, 0.2), aiq=(0.2, 0.3)).disagreements == ()
    assert gains(area=(-0.1, 0.2), aiq=(-0.2, 0.1)).disagreements == ()  # neither is sure of anything
    for area, aiq, apgr, expected in (
        ((-0.1, 0.2), (0.01, 0.3), (-0.1, 0.2), ["AIQ"]),
        ((-0.3, -0.1), (-0.1, 0.1), (-0.3, -0.1), ["AIQ"]),
        ((-0.3, -0.1), (0.1, 0.2), (0.1, 0.2), ["AIQ", "APGR"]),
        ((0.1, 0.2), (0.1, 0.2), (-0.1, 0.2), ["APGR"]),
    ):
        results = gains(area=area, aiq=aiq, apgr=apgr)
        assert [found.metric for found in results.disagreements] == expected
        doubts = describe_doubts(results)
        for metric in expected:
            assert any(doubt.startswith(f"{metric} and the curve disagree") for doubt in doubts)
    sentence, _ = claimed_gains(gains(area=(-0.3, -0.1)))["zero_router"]
    assert "lost to the zero router" in sentence
    assert "neither gain nor loss" in claimed_gains(gains(area=(-0.3, 0.1)))["zero_router"][0]
    assert "gained over the zero router" in claimed_gains(gains(area=(0.3, 0.4)))["zero_router"][0]
