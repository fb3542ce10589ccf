"""Candidates that join a trained router: what they gain from a handful of items, and what they leave alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.questions.cold_start import cold_start
from moe_lab.questions.heads import expected, inverse
from moe_lab.questions.join import fit_newcomer, join, similarity
from moe_lab.questions.router import QuestionRouter
from moe_lab.questions.table import ItemCandidate, ItemTable, make_table
from tests.questions.synthetic import QUICK, ladder_table, router_of


def ladder(items: int, seed: int = 0) -> ItemTable:
    """Four candidates on items of known hardness; the third is `m2`, between its neighbours."""
    return ladder_table(items, seed, candidates=4)


def without(table: ItemTable, name: str) -> ItemTable:
    return table.only([other for other in table.names if other != name])


@pytest.fixture(scope="module")
def trained() -> tuple[ItemTable, QuestionRouter]:
    """A table of all four, and a router that knows three of them."""
    table = ladder(600)
    rest = without(table, "m2")
    return table, router_of(rest)


def newcomer(table: ItemTable, items: int, **card: object) -> ItemTable:
    made = table.rows(np.arange(items)).only(["m2"])
    return dataclasses.replace(made, candidates=(dataclasses.replace(made.candidates[0], **card),))  # type: ignore[arg-type]


def test_the_others_are_the_same_bits(trained) -> None:
    table, router = trained
    joined = join(router, without(table, "m2").candidates, newcomer(table, 20)).router
    assert joined.names == ("m0", "m1", "m3", "m2")
    raw = router.read(table)
    for mode in ("learned", "group_table", "zero_router"):
        before = dataclasses.replace(router, mode=mode).predict(raw)
        after = dataclasses.replace(joined, mode=mode).predict(raw)
        np.testing.assert_array_equal(after[:, :3], before)
        assert after.shape == (600, 4)
        assert np.isfinite(after).all()
    kept = {name: array for name, array in joined.tensors().items() if not name.startswith("joined")}
    for name, array in router.tensors().items():
        np.testing.assert_array_equal(kept[name][..., : array.shape[-1]] if array.ndim else kept[name], array)


def test_it_is_saved_and_routes_to_the_newcomer(trained) -> None:
    table, router = trained
    joined = join(router, without(table, "m2").candidates, newcomer(table, 20)).router
    again = QuestionRouter.rebuild(joined.describe(), joined.tensors())
    raw = joined.read(table)
    np.testing.assert_array_equal(again.predict(raw), joined.predict(raw))
    taken = joined.names.index("m2")
    assert taken in joined.route(table, 0.3)
    assert taken not in joined.route(table, 0.3, available=["m0", "m1", "m3"])


@pytest.mark.slow
def test_twenty_items_beat_the_card_alone_where_the_card_misleads() -> None:
    """By its cost the newcomer is like the best of them; in truth it is like the worst."""
    better = 0
    for seed in range(8):
        table = ladder(500, seed)
        rest = without(table, "m2")
        router = router_of(rest)
        weak = table.outcome_NC[:, 0] * (np.random.default_rng(seed).random(500) < 0.9)
        items = make_table(
            "new", (ItemCandidate(name="new"),), weak[:20, None], [4.0], numbers={"hardness": table.number_NF[:20, 0]}
        )
        made = join(router, rest.candidates, items)
        fresh = np.arange(20, 500)
        raw = router.read(table.rows(fresh))
        after = made.router.predict(raw)[:, -1]
        [report] = made.reports
        before = expected(
            inverse(router.predict(raw), "logistic")
            @ similarity(ItemCandidate(name="new"), 4.0, rest.candidates, router.cost_C),
            "logistic",
        )
        better += ((after - weak[fresh]) ** 2).mean() < 0.9 * ((before - weak[fresh]) ** 2).mean()
        assert report.loss_left_out < report.loss_before
        assert report.items == 20
    assert better == 8


def test_the_left_out_loss_is_of_fits_without_the_item(trained) -> None:
    table, router = trained
    cards, items = without(table, "m2").candidates, newcomer(table, 9)
    [report] = join(router, cards, items).reports
    raw, losses, kept = router.read(items), [], []
    for n in range(9):
        right = items.quality_NC[n, 0]
        for found, others in ((losses, np.delete(np.arange(9), n)), (kept, np.arange(9))):
            said = join(router, cards, items.rows(others)).router.predict(raw)[n, -1]
            found.append(-right * np.log(said) - (1 - right) * np.log(1 - said))
    assert report.loss_left_out == pytest.approx(np.mean(losses), abs=1e-8)
    assert report.loss_left_out > np.mean(kept) + 1e-4
    assert report.measured == pytest.approx(items.quality_NC.mean())
    assert report.after == pytest.approx(join(router, cards, items).router.predict(raw)[:, -1].mean())
    card_alone = similarity(items.candidates[0], float(items.cost_C[0]), cards, router.cost_C)
    by_card = expected(inverse(router.predict(raw), "logistic") @ card_alone, "logistic")
    assert report.before == pytest.approx(by_card.mean())


@pytest.mark.parametrize("link", ["logistic", "identity"])
def test_many_items_find_the_map_that_made_them(link) -> None:
    rng = np.random.default_rng(0)
    z_NC = rng.normal(size=(20_000, 3))
    truth = expected(z_NC @ [0.2, 0.9, -0.1] + 0.7, link)
    quality = (rng.random(20_000) < truth).astype(float) if link == "logistic" else truth + rng.normal(size=20_000)
    made = fit_newcomer(expected(z_NC, link), quality, expected(np.zeros(3), link), np.full(3, 1 / 3), link)
    np.testing.assert_allclose(made.weight_CJ[:, 0], [0.2, 0.9, -0.1], atol=0.06)
    assert made.bias_J[0] == pytest.approx(0.7, abs=0.06)


@pytest.mark.parametrize("link", ["logistic", "identity"])
def test_no_items_leave_the_prior(link) -> None:
    prior = np.array([0.5, 0.5, 0.0])
    made = fit_newcomer(np.zeros((0, 3)), np.zeros(0), np.array([0.2, 0.4, 0.6]), prior, link)
    np.testing.assert_allclose(made.weight_CJ[:, 0], prior)
    assert made.bias_J[0] == pytest.approx(0)


def test_alike_is_the_ratio_of_sizes_within_a_family_and_of_costs_elsewhere() -> None:
    cards = (
        ItemCandidate(name="a", size=7, family="x"),
        ItemCandidate(name="b", size=70, family="x"),
        ItemCandidate(name="c", size=1, family="y"),
    )
    found = similarity(ItemCandidate(name="n", size=35, family="x"), 10.0, cards, np.array([99.0, 99.0, 5.0]))
    np.testing.assert_allclose(found, np.array([2 * 0.2, 2 * 0.5, 0.5]) / 1.9)
    free = similarity(ItemCandidate(name="n"), 0.0, cards, np.array([0.0, 1.0, 2.0]))
    assert free.tolist() == [1.0, 0.0, 0.0]
    assert similarity(ItemCandidate(name="n"), 0.0, cards, np.ones(3)).tolist() == [1 / 3] * 3


def test_a_second_newcomer_joins_behind_the_first(trained) -> None:
    table, router = trained
    cards = without(table, "m2").candidates
    first = join(router, cards, newcomer(table, 20)).router
    second = join(first, cards, newcomer(table, 30, name="late")).router
    assert second.names == ("m0", "m1", "m3", "m2", "late")
    raw = router.read(table)
    np.testing.assert_array_equal(second.predict(raw)[:, :4], first.predict(raw))
    alone = join(router, cards, newcomer(table, 30, name="late")).router
    np.testing.assert_array_equal(second.predict(raw)[:, 4], alone.predict(raw)[:, 3])


def test_who_cannot_join_is_told_why(trained) -> None:
    table, router = trained
    cards = without(table, "m2").candidates
    with pytest.raises(LabError, match="the router knows m0, m1, m3 already"):
        join(router, cards, without(table, "m2"))
    with pytest.raises(LabError, match="measure the newcomer on a few"):
        join(router, cards, newcomer(table, 0))
    losses = dataclasses.replace(newcomer(table, 20), outcome="loss")
    with pytest.raises(LabError, match="outcomes lie between 0 and 1"):
        join(router, cards, losses)


@pytest.mark.slow
def test_the_items_of_a_draw_are_of_its_seed_and_none_is_drawn_twice() -> None:
    two_folds = QUICK.model_copy(update={"folds": 2})
    few = cold_start(ladder(60), two_folds, "m2", items=8, draws=2)
    assert few == cold_start(ladder(60), two_folds, "m2", items=8, draws=2)
    assert few.joined[0] != few.joined[1]
    # Asked for more than there are, each draw is all of them.
    one, other = cold_start(ladder(60), two_folds, "m2", items=10**6, draws=2).joined
    assert one == pytest.approx(other)


@pytest.mark.slow
def test_a_candidate_left_out_and_joined_again_lies_between_its_card_and_a_full_training() -> None:
    found = cold_start(ladder(300), QUICK, "m2", draws=2)
    assert len(found.joined) == 2
    # All of them route; nothing says that a draw of 20 items is lucky.
    for value in (*found.joined, found.prior):
        assert found.retrained - 0.1 < value < found.retrained + 0.02
