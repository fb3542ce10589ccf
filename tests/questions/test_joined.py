"""The report of a router that a candidate joined: before and after, on a table whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.metrics.areas import CostRange, aiq, deferral_area, policy_points
from moe_lab.metrics.choices import choose
from moe_lab.questions.join import join
from moe_lab.questions.joined import JoinedOn, measure_joined, score_joined
from moe_lab.questions.results import AREA, RouteResults
from moe_lab.questions.table import ItemTable
from moe_lab.reports.route_report import render_route_report
from tests.questions.synthetic import QUICK, ladder_table, router_of

OLD = ["m0", "m1", "m3"]


def joined(newcomer_cost: float = 3.0) -> tuple[JoinedOn, ItemTable]:
    """A router of three that `m2` joined on 12 questions, and 80 that it never saw besides these."""
    table = ladder_table(280, candidates=4)
    cost_C = np.where(np.array(table.names) == "m2", newcomer_cost, table.cost_C)
    table = dataclasses.replace(table, cost_NC=np.tile(cost_C, (280, 1)))
    rest = table.rows(np.arange(200)).only(OLD)
    router = router_of(rest)
    items = table.rows(np.arange(200, 212)).only(["m2"])
    joining = join(router, rest.candidates, items)
    return JoinedOn(before=router, joining=joining, cards=rest.candidates, items=items), table.rows(np.arange(200, 280))


def measure(made: JoinedOn, measured: ItemTable) -> RouteResults:
    return measure_joined(made, measured, QUICK, name="lab/four", warnings=[], seconds=1.0)


@pytest.fixture(scope="module")
def case() -> tuple[JoinedOn, ItemTable, RouteResults]:
    made, measured = joined()
    return made, measured, measure(made, measured)


def test_a_question_that_it_joined_on_is_predicted_without_it(case) -> None:
    made, measured, _ = case
    scored, left_out = score_joined(made, measured)
    assert left_out == 12
    raw = made.before.read(measured)
    np.testing.assert_array_equal(scored.predicted("before"), made.before.predict(raw))
    after = made.joining.router.predict(raw)[:, -1]
    np.testing.assert_array_equal(scored.routed_NC[12:, -1], after[12:])
    for item in (0, 5, 11):
        others = made.items.rows(np.delete(np.arange(12), item))
        without = join(made.before, made.cards, others).router.predict(raw)[item, -1]
        assert scored.routed_NC[item, -1] == pytest.approx(without, abs=1e-8)
        assert abs(without - after[item]) > 1e-6


def test_the_curve_before_is_the_router_without_the_newcomer(case) -> None:
    made, measured, results = case
    old = measured.only(OLD)
    predicted = made.before.predict(made.before.read(old))
    [before] = [curve for curve in results.curves if curve.role == "before"]
    assert before.label == "before m2 joined"
    choices = [choose(-predicted, old.cost_C / 4, point.price or 0.0) for point in before.points]
    expected = policy_points(choices, old.quality_NC, old.cost_NC)
    np.testing.assert_allclose([(point.cost, point.quality) for point in before.points], expected)
    assert results.figure("AIQ", "before") == pytest.approx(aiq(expected, CostRange(1.0, 4.0)))
    area = deferral_area(expected, CostRange(1.0, 4.0))
    gained = results.gained("before")
    assert gained is not None
    assert gained.mean == pytest.approx((results.figure(AREA) or np.nan) - area)
    assert gained.low < gained.high


def test_the_share_that_the_newcomer_gets(case) -> None:
    made, measured, results = case
    scored, _ = score_joined(made, measured)
    chosen = choose(-scored.routed_NC, scored.table.cost_C / 4, results.shown_price)
    [row] = results.newcomers
    assert row.share.mean == pytest.approx((chosen == 3).mean())
    assert 0 < row.share.mean <= row.greatest_share
    assert (row.name, row.items) == ("m2", 12)
    page = render_route_report(RouteResults.model_validate_json(results.model_dump_json()))
    for told in ("What joined", "before m2 joined", "12 of which newcomers joined on", "itself before joining"):
        assert told in page
    assert "out of fold" not in page


@pytest.mark.parametrize("cost", [0.5, 9.0])
def test_a_newcomer_that_is_the_cheapest_or_the_dearest(cost: float) -> None:
    """Both curves are compared from the cheapest that was there before, to the dearest of all."""
    made, measured = joined(cost)
    results = measure(made, measured)
    assert results.band.cost[0] == pytest.approx(1.0)
    assert results.band.cost[-1] == pytest.approx(max(cost, 4.0))
    assert np.isfinite([results.figure("AIQ", "before") or np.nan, results.figure("AIQ") or np.nan]).all()


def test_questions_without_the_others_outcomes_are_refused() -> None:
    made, measured = joined()
    with pytest.raises(LabError, match="has no outcomes of m0, m1, m3"):
        measure(made, measured.only(["m2"]))
