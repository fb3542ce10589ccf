"""One evaluation against direct sums over the text: every cell, curve, share and count, with and without an opt-out."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import make_router
from moe_lab.evaluation.evaluate import Evaluation, Settings, decision_outcomes
from moe_lab.evaluation.outcomes import measure_outcomes
from moe_lab.evaluation.passes import AnswerItems, PlannedPass
from moe_lab.evaluation.results import Results, TrunkEntry
from tests.compose.published import LADDERS, MODULES, TRUNK, Published, publish_all
from tests.evaluation.heldout import make_batches, make_corpora, make_heldout

pytestmark = pytest.mark.slow

PRICES = (0.0, 2.0)
OUT = "south/prose"
HOMES = {"prose": OUT, "exercises": "west/sums"}
COST_PER_BLOCK = 3 * TRUNK.d_model * TRUNK.block


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish_all(tmp_path_factory.mktemp("published") / "lab")


@pytest.fixture(scope="module")
def evaluation(published: Published) -> Evaluation:
    """Of the gain router, with greedy hits made up: random models are never right."""
    model = published.model(published.lock("lab/gain", price=0.5))
    model = dataclasses.replace(model, homes=HOMES)
    corpora = make_corpora()
    table, hits = measure_outcomes(model, corpora, make_batches(corpora))
    decision, _ = measure_outcomes(model, corpora, make_batches(corpora, "validation"))
    random = make_router(published.lab, {"type": "random"}, model.candidates, TRUNK.d_model)
    return Evaluation(
        model=model,
        label="lab/gain",
        others={"the same": dataclasses.replace(model, price=9.0)},
        random=dataclasses.replace(model, router=random),
        heldout=make_heldout(corpora),
        table=table,
        hit_NSC=np.random.default_rng(0).random(hits.shape) < 0.9,
        decision=decision_outcomes(decision),
        settings=Settings(prices=PRICES, without=(), sample_tokens=20, resamples=20, seed=0),
    )


@pytest.fixture(scope="module", params=[(), (OUT,)], ids=["all", "one out"])
def run(request: pytest.FixtureRequest, evaluation: Evaluation) -> tuple[Evaluation, dict[str, list], int]:
    """An evaluation with nothing and with one module opted out: itself, what it measured, and its passes."""
    passes = []
    settings = dataclasses.replace(evaluation.settings, without=request.param)
    decision = evaluation.decision
    kept = evaluation.table.space.kept(request.param)
    decision = dataclasses.replace(decision, loss_TC=decision.loss_TC[:, kept], cost_C=decision.cost_C[kept])
    fresh = dataclasses.replace(
        evaluation, settings=settings, decision=decision, count_pass=lambda: passes.append(None)
    )
    return fresh, fresh.measure(), len(passes)


def direct(evaluation: Evaluation, model: ComposedModel, **options: Any) -> dict[int, tuple[float, float, float]]:
    """Bits, bytes and multiply-adds of each domain, added up batch by batch, and the tokens' mean cost."""
    arrays, totals = model.arrays(), {0: [0.0, 0.0, 0.0, 0.0], 1: [0.0, 0.0, 0.0, 0.0]}
    # The gain router's tables of means, and what it looks up of n-grams: of modules, of rungs, of rivals.
    own = 2 * (3 * 3) + (4 + 1) * 3 + 4 * (3 * 3) + (4 + 2) * (3 * 2)
    without, told = (*evaluation.settings.without, *options.pop("without", ())), options.pop("told", False)
    for batch in evaluation.heldout.batches:
        hidden = model.enter(arrays, batch)
        if told:
            homes = [list(HOMES.values())[index] for index in batch.domain]
            options["hint_BE"] = np.array(
                [[0 if name == home else -np.inf for name in MODULES] for home in homes], "f4"
            )
        decision = model.run(arrays, batch, hidden, available_E=model.available(without), **options)
        for row, place in np.argwhere(batch.loss_mask > 0):
            total = totals[int(batch.domain[row])]
            total[0] += float(decision.loss_BS[row, place]) / math.log(2)
            total[1] += float(batch.target_bytes[row, place])
            total[2] += int(decision.blocks_BS[row, place]) * COST_PER_BLOCK + own
            total[3] += 1
    return {domain: (bits, size, cost / tokens) for domain, (bits, size, cost, tokens) in totals.items()}


def cell_of(measured: dict[str, list], domain: str, system: str, module: str | None = None, width: int | None = None):  # type: ignore[no-untyped-def]
    [cell] = [
        cell
        for cell in measured["matrix"]
        if (cell.domain, cell.system, cell.module, cell.width) == (domain, system, module, width)
    ]
    return cell


def names(evaluation: Evaluation) -> list[str]:
    return [name for name in MODULES if name not in evaluation.settings.without]


def test_what_is_measured_makes_valid_results(run) -> None:
    evaluation, measured, _ = run
    results = Results(
        name="tiny",
        lockfile={},
        created="2026-01-01T00:00:00+00:00",
        elapsed_seconds=1.0,
        modules=[],
        trunk=TrunkEntry(ref="lab/trunk@1", digest="sha256-1", parameters=1),
        **measured,
    )
    rungs = sum(len(LADDERS[name]) for name in names(evaluation))
    assert len(results.candidates) == 1 + rungs
    assert len(results.matrix) == 2 * (1 + rungs + 1 + len(names(evaluation)))


def test_cells_of_candidates_are_direct_sums(run) -> None:
    evaluation, measured, _ = run
    model, rows = evaluation.model, evaluation.heldout.rows
    arrays, space = model.arrays(), model.candidates
    losses = np.concatenate(
        [model.run_candidates(arrays, batch, model.enter(arrays, batch))[0] for batch in evaluation.heldout.batches]
    )
    candidates = [
        ("trunk", None, None, 0),
        *(("alone", space.modules[e], space.widths[e][r], c) for c, (e, r) in enumerate(space.pairs, 1)),
    ]
    for index, domain in enumerate(("prose", "exercises")):
        where = (rows.domain == index)[:, None] & (rows.loss_mask > 0)
        for system, module, width, candidate in candidates:
            if module in evaluation.settings.without:
                continue
            cell = cell_of(measured, domain, system, module, width)
            bits = losses[..., candidate][where].astype(np.float64).sum() / math.log(2)
            assert cell.bits_per_byte.mean == pytest.approx(bits / rows.target_bytes[where].sum(), rel=1e-6)
            assert cell.cost == space.cost_C[candidate]


def test_cells_of_the_composed_model_are_direct_sums_with_the_cost_of_the_routing(run) -> None:
    evaluation, measured, _ = run
    for domain, (bits, size, cost) in direct(evaluation, evaluation.model).items():
        cell = cell_of(measured, ("prose", "exercises")[domain], "composed")
        assert cell.bits_per_byte.mean == pytest.approx(bits / size, rel=1e-6)
        assert cell.cost == pytest.approx(cost)
        assert cell.bits_per_byte.low < cell.bits_per_byte.mean < cell.bits_per_byte.high


def test_cells_of_left_out_modules_are_passes_without_them(run) -> None:
    evaluation, measured, _ = run
    left_out = {cell.module for cell in measured["matrix"] if cell.system == "left_out"}
    assert left_out == set(names(evaluation))
    composed = direct(evaluation, evaluation.model)
    for name in names(evaluation):
        totals = direct(evaluation, evaluation.model, without=(name,))
        assert totals != composed
        for domain, (bits, size, cost) in totals.items():
            cell = cell_of(measured, ("prose", "exercises")[domain], "left_out", name)
            assert cell.bits_per_byte.mean == pytest.approx(bits / size, rel=1e-6)
            assert cell.cost == pytest.approx(cost)


def test_acceptance_compares_with_the_trunk_and_the_best_candidate(run) -> None:
    _, measured, _ = run
    for entry in measured["acceptance"]:
        alone = {
            "trunk" if cell.module is None else f"{cell.module}:{cell.width}": cell.bits_per_byte.mean
            for cell in measured["matrix"]
            if cell.domain == entry.domain and cell.system in ("trunk", "alone")
        }
        composed = cell_of(measured, entry.domain, "composed").bits_per_byte.mean
        assert entry.best_single.name == min(alone, key=alone.__getitem__)
        assert entry.best_single.bits_per_byte == pytest.approx(min(alone.values()))
        assert entry.trunk == pytest.approx(alone["trunk"])
        assert entry.composed == pytest.approx(composed)
        assert entry.no_worse_than_trunk == (composed <= alone["trunk"])
        assert entry.gap_to_best_percent == pytest.approx(100 * (composed / min(alone.values()) - 1))


def test_domains_count_their_rows_and_bytes(run) -> None:
    evaluation, measured, _ = run
    rows = evaluation.heldout.rows
    for index, domain in enumerate(measured["domains"]):
        own = (rows.domain == index)[:, None] & (rows.loss_mask > 0)
        assert domain.rows == own.any(axis=1).sum() == 3
        assert domain.bytes == rows.target_bytes[own].sum()


def test_curves_of_routers_are_passes_at_each_price(run) -> None:
    evaluation, measured, _ = run
    curves = {curve.label: curve for curve in measured["curves"]}
    for label in ("lab/gain", "the same"):
        assert [point.price for point in curves[label].points] == list(PRICES)
    for price, point in zip(PRICES, curves["lab/gain"].points, strict=True):
        bits, size, _ = map(sum, zip(*direct(evaluation, evaluation.model, price=price).values(), strict=True))
        assert point.bits_per_byte.mean == pytest.approx(bits / size, rel=1e-6)
    assert curves["lab/gain"].points == curves["the same"].points
    for price, point in zip(PRICES, curves["lab/gain, told the domain"].points, strict=True):
        totals = direct(evaluation, evaluation.model, price=price, told=True)
        bits, size, _ = map(sum, zip(*totals.values(), strict=True))
        assert point.bits_per_byte.mean == pytest.approx(bits / size, rel=1e-6)
    assert curves["lab/gain, told the domain"].points != curves["lab/gain"].points
    assert curves["lab/gain"].points[0].cost > curves["lab/gain"].points[1].cost


def test_budgets_are_met_by_mixing_prices_and_the_bare_trunk(run) -> None:
    evaluation, measured, _ = run
    curves = {curve.label: curve for curve in measured["curves"]}
    points = [*curves["lab/gain"].points, *curves["trunk"].points]
    mixed = sorted((point.cost, point.bits_per_byte.mean) for point in points)
    dearest = evaluation.available.space.cost_C.max()
    assert [budget.share for budget in measured["budgets"]] == [0.1, 0.25, 0.5]
    for budget in measured["budgets"]:
        cost = min(budget.share * dearest, mixed[-1][0])
        assert budget.point.cost == pytest.approx(cost)
        assert budget.point.bits_per_byte.mean == pytest.approx(np.interp(cost, *zip(*mixed, strict=True)))
        assert budget.point.difference_to_zero is not None


def test_uniform_widths_are_passes_with_a_cap(run) -> None:
    evaluation, measured, _ = run
    [uniform] = [curve for curve in measured["curves"] if curve.role == "uniform_width"]
    blocks = sorted({-(-width // TRUNK.block) for name in names(evaluation) for width in LADDERS[name]})
    for cap, point in zip(blocks, uniform.points, strict=True):
        totals = direct(evaluation, evaluation.model, price=0.0, width_cap=cap).values()
        bits, size, _ = map(sum, zip(*totals, strict=True))
        assert point.bits_per_byte.mean == pytest.approx(bits / size, rel=1e-6)


def test_baselines_stand_beside_the_routers_and_the_oracle_below_them_all(run) -> None:
    evaluation, measured, _ = run
    curves, space = {curve.label: curve for curve in measured["curves"]}, evaluation.available.space
    roles = Counter(curve.role for curve in measured["curves"])
    assert roles == {
        "learned": 2,
        "told": 1,
        "fixed": len(space),
        "zero_router": 1,
        "group_table": 1,
        "uniform_width": 1,
        "random": 1,
        "oracle": 1,
    }
    outcomes = evaluation.heldout.token_outcomes(evaluation.available)
    total_bytes = outcomes.bytes_T.sum()
    for candidate, name in enumerate(space.names):
        [point] = curves[name].points
        assert point.bits_per_byte.mean == pytest.approx(outcomes.loss_TC[:, candidate].sum() / total_bytes)
        assert point.cost == space.cost_C[candidate]
    for label, field in (("lab/gain", "routed_difference"), ("lab/gain, told the domain", "told_difference")):
        passes = sorted((point.cost, point.bits_per_byte.mean) for point in curves[label].points)
        for point in curves["group table"].points:
            if point.cost < passes[0][0]:
                assert getattr(point, field) is None
            else:
                expected = np.interp(point.cost, *zip(*passes, strict=True)) - point.bits_per_byte.mean
                assert getattr(point, field).mean == pytest.approx(expected)
    free = {point.price: point for point in curves["oracle"].points}[0.0]
    assert free.bits_per_byte.mean == pytest.approx(outcomes.loss_TC.min(axis=1).sum() / total_bytes)
    # A price is in nats for the dearest candidate of the composition, opted out or not.
    bill = outcomes.loss_TC * math.log(2) + PRICES[1] * space.cost_C / evaluation.model.space.cost_C.max()
    chosen = np.take_along_axis(outcomes.loss_TC, bill.argmin(axis=1)[:, None], axis=1).sum()
    dear = {point.price: point for point in curves["oracle"].points}[PRICES[1]]
    assert dear.bits_per_byte.mean == pytest.approx(chosen / total_bytes, rel=1e-9)


def test_routing_shares_count_each_token_once_in_equal_parts_for_what_it_runs(run, published: Published) -> None:
    evaluation, model, counts = run[0], published.model(published.lock("lab/topk")), Counter()
    several = dataclasses.replace(evaluation, model=model)
    measured = {"routing": several._routing(several._run(PlannedPass("composed", "", model)))}
    arrays, tokens = model.arrays(), Counter()
    for batch in evaluation.heldout.batches:
        available = model.available(evaluation.settings.without)
        decision = model.run(arrays, batch, model.enter(arrays, batch), available_E=available)
        for row, place in np.argwhere(batch.loss_mask > 0):
            domain = ("prose", "exercises")[int(batch.domain[row])]
            choices = zip(decision.expert_BSK[row, place], decision.width_BSK[row, place], strict=True)
            ran = [(MODULES[int(expert)], int(width) * TRUNK.block) for expert, width in choices if width]
            for name, width in ran:
                counts[domain, name, min(width, LADDERS[name][-1])] += 1 / len(ran)
            counts[domain, None, 0] += not ran
            tokens[domain] += 1
    shares = {(share.domain, share.module, share.width): share.share for share in measured["routing"]}
    assert shares == pytest.approx({key: number / tokens[key[0]] for key, number in counts.items() if number})
    assert OUT not in evaluation.settings.without or not any(module == OUT for _, module, _ in shares)
    assert len(shares) > 3


def test_exact_match_counts_whole_answers(run) -> None:
    evaluation, measured, _ = run
    items, space = AnswerItems.of(evaluation.heldout.rows), evaluation.table.space
    levels = sorted(set(items.level.tolist()))
    for match in measured["exact_match"]:
        if match.system not in ("trunk", "alone"):
            continue
        candidate = space.names.index(f"{match.module}:{match.width}" if match.module else "trunk")
        right = [
            bool(evaluation.hit_NSC[row, start:end, candidate].all())
            for row, start, end, level in zip(items.row, items.start, items.end, items.level, strict=True)
            if level == match.level
        ]
        assert match.items == len(right)
        assert match.mean == pytest.approx(np.mean(right))
    systems = {(cell.system, cell.module, cell.width) for cell in measured["matrix"]}
    assert {(m.system, m.module, m.width, m.level) for m in measured["exact_match"]} == {
        (*system, level) for system in systems for level in levels
    }
    assert {match.mean for match in measured["exact_match"]} - {0.0, 1.0}


def test_samples_are_the_beginning_of_a_row_of_each_domain(run) -> None:
    evaluation, measured, _ = run
    rows = evaluation.heldout.rows
    for index, sample in enumerate(measured["samples"]):
        row = np.flatnonzero(rows.domain == index)[0]
        assert "".join(sample.pieces) == evaluation.model.trunk.tokenizer.decode(rows.tokens[row, :20])
        assert len(sample.pieces) == 20
        assert set(sample.module) <= {None, *names(evaluation)}
        for module, width in zip(sample.module, sample.width, strict=True):
            assert width in (LADDERS[module] if module else (0,))


def test_every_pass_is_announced(run) -> None:
    evaluation, _, passes = run
    assert passes == len(evaluation.planned)


def test_decision_outcomes_are_the_counted_tokens_in_bits(evaluation: Evaluation) -> None:
    table = evaluation.table
    outcomes = decision_outcomes(table)
    np.testing.assert_allclose(outcomes.loss_TC, table.loss_NSC[table.mask_NS] / np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(outcomes.cost_C, table.space.cost_C)
    assert outcomes.bytes_T.sum() == table.bytes_NS[table.mask_NS].sum()
    rows = np.nonzero(table.mask_NS)[0]
    assert len(set(zip(rows.tolist(), outcomes.unit_T.tolist(), strict=True))) == outcomes.num_units == 6
    np.testing.assert_array_equal(outcomes.group_T, table.group_N[rows])
