"""The domain router keeps the contract, and learns the module of a document and what its rungs lose on average."""

from __future__ import annotations

import inspect

import jax
import numpy as np
import pytest
from flax import nnx

from moe_lab import Router, Routing, find_lab
from moe_lab.testing import SPACE, Example, check_router, draw_example, learn_example, make_example_router

pytestmark = pytest.mark.slow

lab = find_lab()
DomainRouter = lab.load(lab.get("routers", "domain"))
settled = inspect.getmodule(DomainRouter).settled  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def trained() -> Router:
    return learn_example(make_example_router(DomainRouter, half_life=4), learning_rate=0.1)


@pytest.fixture(scope="module")
def unseen() -> Example:
    return draw_example(7, rows=32)


@pytest.fixture(scope="module")
def route(trained: Router, unseen: Example):
    run = jax.jit(lambda features: trained.route(features))

    def at(price: float, available: tuple[bool, ...] = (True, True, True)) -> Routing:
        shown = unseen.features.for_all_rows(price=price, available_E=available)
        return Routing(*(np.asarray(field)[..., 0] for field in run(shown)))

    return at


def test_it_keeps_the_contract() -> None:
    check_router(DomainRouter, margin=0.3, prior_gain=0.1)


def test_the_module_follows_the_document(route, unseen: Example) -> None:
    counted = np.asarray(unseen.features.segment_ids_BS) > 0
    assert (route(0.0).expert == unseen.module_BS)[counted].mean() > 0.9


def test_its_table_is_the_mean_loss_of_each_rung_on_the_module_s_documents(trained: Router) -> None:
    learned_from = draw_example(100, rows=32)  # what `learn_example` trains on
    counted = np.asarray(learned_from.features.segment_ids_BS) > 0
    outcomes = np.asarray(learned_from.features.outcomes_BSC)
    for module, candidates in enumerate(SPACE.candidate_ER):
        own = counted & (learned_from.module_BS == module)
        np.testing.assert_allclose(trained.rung_loss_C[...][candidates], outcomes[own].mean(0)[candidates], atol=0.05)
        np.testing.assert_allclose(trained.trunk_loss_E[...][module], outcomes[own].mean(0)[0], atol=0.05)


@pytest.mark.parametrize(("price", "share"), [(0.3, 1.0), (1.5, 0.0)])
def test_it_runs_what_the_module_gains_on_average(route, unseen: Example, price: float, share: float) -> None:
    # Full width gains 2 nats on a third of the tokens: about 0.8 nats a token, in proportion to width.
    counted = np.asarray(unseen.features.segment_ids_BS) > 0
    routing = route(price)
    wide = counted & (routing.expert == 2)
    assert wide.any() == bool(share)
    assert (routing.width[wide] == 4 * share).all()


def test_with_its_module_opted_out_a_document_goes_to_another(route) -> None:
    everything, without = route(0.0), route(0.0, (False, True, True))
    lost = everything.expert == 0
    assert lost.any()
    assert (without.expert[lost] > 0).all()
    assert (without.width[lost] > 0).all()
    np.testing.assert_array_equal(without.expert[~lost], everything.expert[~lost])


def settled_by_hand(scores_SE: np.ndarray, segments_S: np.ndarray, margin: float) -> list[int]:
    chosen: list[int] = []
    for place, score_E in enumerate(scores_SE):
        leader = int(score_E.argmax())
        new = place == 0 or segments_S[place] != segments_S[place - 1]
        stays = not new and score_E[leader] - score_E[chosen[-1]] <= margin
        chosen.append(chosen[-1] if stays else leader)
    return chosen


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0, 100.0])
def test_a_document_keeps_its_module_until_another_leads_by_the_margin(margin: float) -> None:
    segments_BS = np.asarray(draw_example(0, rows=6).features.segment_ids_BS)
    scores_BSE = np.random.default_rng(0).normal(size=(*segments_BS.shape, 4)).astype(np.float32)
    scores_BSE[..., 2] = -np.inf  # opted out
    kept = np.asarray(jax.jit(settled, static_argnums=2)(scores_BSE, segments_BS, margin))
    expected = [settled_by_hand(*row, margin) for row in zip(scores_BSE, segments_BS, strict=True)]
    np.testing.assert_array_equal(kept, expected)
    assert (kept != 2).all()


def test_a_margin_makes_fewer_changes_and_finds_the_document_s_module_all_the_same(
    trained: Router, unseen: Example
) -> None:
    noise_BSD = np.random.default_rng(0).normal(size=unseen.features.hidden_BSD.shape).astype(np.float32)
    features = unseen.features.for_all_rows(price=0)._replace(hidden_BSD=unseen.features.hidden_BSD + 1.5 * noise_BSD)
    segments_BS = np.asarray(features.segment_ids_BS)
    inside = (segments_BS[:, 1:] == segments_BS[:, :-1]) & (segments_BS[:, 1:] > 0)
    changes, right = [], []
    for margin in (0.0, 4.0):
        calm = make_example_router(DomainRouter, half_life=4, margin=margin)
        nnx.update(calm, nnx.state(trained))
        expert_BS = np.asarray(jax.jit(calm.route)(features).expert)[..., 0]
        changes.append(((expert_BS[:, 1:] != expert_BS[:, :-1]) & inside).sum())
        right.append((expert_BS == unseen.module_BS)[segments_BS > 0].mean())
    assert changes[1] < changes[0] / 2
    assert right[1] > right[0] - 0.05


@pytest.mark.parametrize(
    ("price", "available", "runs"),
    [(0.3, (True, True, True), (0, 1)), (0.3, (False, True, True), (1, 2)), (0.9, (True, True, True), (0, 0))],
)
def test_before_any_data_it_tries_the_cheapest_module_while_the_prior_is_worth_the_price(
    price: float, available: tuple[bool, ...], runs: tuple[int, int]
) -> None:
    # Full widths cost 1/4, 1/2 and 1 of the dearest: at a price of 0.9 the cheapest costs 0.225 nats.
    router = make_example_router(DomainRouter, prior_gain=0.2)
    features = draw_example(0).features
    routing = jax.jit(router.route)(features.for_all_rows(price=price, available_E=available))
    assert not router.needs_training
    assert (np.asarray(routing.width) == runs[1]).all()
    assert not runs[1] or (np.asarray(routing.expert) == runs[0]).all()


def test_without_a_prior_it_has_to_be_trained() -> None:
    assert make_example_router(DomainRouter).needs_training
