"""Tables in which nothing can be found: no gain is claimed; and ones with a planted gain: it is.

Six tables by default; `MOE_LAB_ROUNDS=100 pytest -s` for as many as docs/metrics.md speaks of, and its figures.
"""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest

from moe_lab.questions.evaluate import score_out_of_fold
from moe_lab.questions.features import raw_features
from moe_lab.questions.results import AREA, RouteCurve, RouterCost, RouteResults
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.summary import summarise
from moe_lab.questions.table import ItemCandidate, ItemTable, make_table
from moe_lab.reports.route_claims import claimed_gains
from moe_lab.reports.route_report import render_route_report

ROUNDS = int(os.environ.get("MOE_LAB_ROUNDS", "6"))
MOST = max(1, ROUNDS // 20)  # 5 in 100
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
MEANS = (0.4, 0.5, 0.6, 0.65)
CANDIDATES = tuple(ItemCandidate(name=name) for name in ("small", "medium", "large", "huge"))
SPEC = QuestionRouterSettings(resamples=200)
pytestmark = pytest.mark.slow


def noise(seed: int, *, planted: float = 0.0, grouped: bool = True) -> ItemTable:
    """300 questions and four candidates whose scores no text can predict.

    On half of the questions `planted` of the huge one's chance is moved to the small one, and on the others the same
    from the small one to the huge one; the words say which.
    """
    rng = np.random.default_rng(seed)
    easy_N = rng.random(300) < 0.5
    half = len(WORDS) // 2
    words = [(WORDS[:half] if easy else WORDS[half:]) if planted else WORDS for easy in easy_N]
    texts = [f"{' '.join(rng.choice(of, 12))} {n}" for n, of in enumerate(words)]
    chance_NC = np.tile(MEANS, (300, 1))
    moved_N = np.where(easy_N, planted, -planted)
    chance_NC[:, 0] += moved_N
    chance_NC[:, 3] -= moved_N
    group = rng.choice(["one", "two", "three"], 300) if grouped else None
    right_NC = (rng.random((300, 4)) < chance_NC).astype(float)
    return make_table("noise", CANDIDATES, right_NC, [1, 2, 4, 8], text=texts, group=group)


def report(table: ItemTable, spec: QuestionRouterSettings) -> RouteResults:
    scored, kept = score_out_of_fold(table, raw_features(table, spec.features), spec)
    cost = RouterCost(parameters=1, microseconds_per_question=1.0, questions_per_batch=1)
    return summarise(scored, spec, name="lab/noise", mode=kept.router.mode, router_cost=cost, warnings=[], seconds=1.0)


def drawn(results: RouteResults, role: str) -> RouteCurve:
    return next(curve for curve in results.curves if curve.role == role)


def gain_of_the_drawing(results: RouteResults) -> float:
    """The mean height of this router's line above the zero router's, read off the points that are drawn."""
    fine = np.linspace(1.0, 8.0, 7001)
    routed, zero = (
        np.interp(fine, [p.cost for p in curve.points], [p.quality for p in curve.points])
        for curve in (drawn(results, "routed"), drawn(results, "zero_router"))
    )
    return float(np.trapezoid(routed - zero, fine) / 7.0)


@functools.cache
def reports_of_noise(abstain: bool) -> list[RouteResults]:
    return [report(noise(seed), SPEC.model_copy(update={"abstain": abstain})) for seed in range(ROUNDS)]


@pytest.fixture(params=[True, False], ids=["abstaining", "never abstaining"])
def of_noise(request: pytest.FixtureRequest) -> list[RouteResults]:
    return reports_of_noise(request.param)


def test_noise_claims_no_gain(of_noise: list[RouteResults]) -> None:
    claims = [claim for results in of_noise for claim, _ in claimed_gains(results).values()]
    assert sum("gained over" in claim for claim in claims) <= MOST
    assert all("zero_router" in claimed_gains(results) for results in of_noise)


def test_no_cost_of_the_band_claims_more_than_chance_has(of_noise: list[RouteResults]) -> None:
    anywhere = [any(gain.low > 0 for gain in results.band.difference_to_zero) for results in of_noise]
    by_hull, by_curve = (
        [gain for results in of_noise if (gain := results.gained("zero_router", metric)) is not None]
        for metric in ("AIQ", AREA)
    )
    print(
        f"\nof {ROUNDS} tables of noise: {sum(g.low > 0 for g in by_curve)} claim a gain over the zero router, "
        f"{sum(anywhere)} have a cost whose band is above zero, {sum(g.low > 0 for g in by_hull)} gain by AIQ, "
        f"{sum(g.high < 0 for g in by_curve)} claim a loss"
    )
    assert sum(anywhere) <= MOST


def test_the_tile_says_what_the_drawing_shows(of_noise: list[RouteResults]) -> None:
    for results in of_noise:
        sentence, gain = claimed_gains(results)["zero_router"]
        assert gain.mean == pytest.approx(gain_of_the_drawing(results), abs=2e-4)
        assert ("lost" in sentence) == (gain.high < 0)
        assert sentence in render_route_report(results)
        band = [at.mean for at in results.band.difference_to_zero]
        assert np.trapezoid(band, results.band.cost) / 7.0 == pytest.approx(gain.mean, abs=0.005)


def test_a_router_that_learnt_nothing_abstains_and_then_loses_nothing() -> None:
    found = reports_of_noise(True)
    verdicts = [verdict.mode for results in found for verdict in results.verdicts]
    assert verdicts.count("learned") <= 0.1 * len(verdicts)
    still = [results for results in found if {v.mode for v in results.verdicts} == {"zero_router"}]
    assert len(still) >= 0.7 * ROUNDS
    for results in still:
        gain = results.gained("zero_router")
        assert gain is not None
        assert (gain.low, gain.mean, gain.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_where_there_are_no_groups_there_is_no_group_table() -> None:
    results = report(noise(0, grouped=False), SPEC)
    assert "group_table" not in {curve.role for curve in results.curves} | {f.role for f in results.figures}
    assert results.gained("group_table") is None
    assert list(claimed_gains(results)) == ["zero_router"]
    page = render_route_report(results)
    assert "minus group table" not in page
    assert {tuple(verdict.validation) for verdict in results.verdicts} == {("learned", "zero_router")}


def test_a_group_table_below_the_zero_router_is_nothing_to_be_above_of() -> None:
    silent = [results for results in reports_of_noise(True) if not results.groups_tell]
    assert silent
    for results in silent:
        assert "group_table" not in claimed_gains(results)
        page = render_route_report(results)
        assert "to be above their table is no gain" in page
        assert "gained over the group table" not in page
        assert "of the group table&#x27;s own costs" not in page


def test_a_planted_gain_is_found() -> None:
    found = [report(noise(seed, planted=0.3), SPEC) for seed in range(max(3, ROUNDS // 5))]
    gains = [results.gained("zero_router") for results in found]
    assert sum(gain is not None and gain.low > 0 for gain in gains) >= 0.9 * len(gains)
    assert all(results.figure(AREA, "oracle") > results.figure(AREA) for results in found)  # type: ignore[operator]
