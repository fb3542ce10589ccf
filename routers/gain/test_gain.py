"""The gain router keeps the contract, and buys width where it pays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab import Router, Routing, find_lab
from moe_lab.testing import (
    SPACE,
    Example,
    check_router,
    draw_example,
    joined_router,
    learn_example,
    make_example_router,
)

pytestmark = pytest.mark.slow

lab = find_lab()
GainRouter = lab.load(lab.get("routers", "gain"))
WIDEST = SPACE.blocks_C[SPACE.widest_E]


@pytest.fixture(scope="module")
def trained() -> Router:
    return learn_example(make_example_router(GainRouter, half_life=16, shrinkage=1))


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


@pytest.mark.parametrize("ngrams", [0, 4])
def test_it_keeps_the_contract(ngrams: int) -> None:
    check_router(GainRouter, ngrams=ngrams)


def test_the_module_follows_the_document_and_the_width_follows_the_token(route, unseen: Example) -> None:
    counted = np.asarray(unseen.features.segment_ids_BS) > 0
    routing = route(1.0)  # between what width gains on marked tokens (2 nats) and on the others (0.2 nats)
    marked, easy = counted & unseen.marked_BS, counted & ~unseen.marked_BS
    right = routing.expert == unseen.module_BS
    assert right[marked].mean() > 0.9
    assert (routing.width == WIDEST[unseen.module_BS])[marked].mean() > 0.9
    assert (routing.width == 0)[easy].mean() > 0.9


def test_one_router_serves_every_price(route, unseen: Example) -> None:
    counted = np.asarray(unseen.features.segment_ids_BS) > 0
    cheap, dear = route(0.02), route(12.0)  # below and above what any width gains
    assert (cheap.width == WIDEST[cheap.expert])[counted].mean() > 0.9
    assert (dear.width == 0)[counted].mean() > 0.9


def test_it_beats_every_fixed_choice_at_its_own_cost(route, unseen: Example) -> None:
    price, counted = 1.0, np.asarray(unseen.features.segment_ids_BS) > 0
    bill = np.asarray(unseen.features.outcomes_BSC) + price * SPACE.relative_cost_C
    routing = route(price)
    chosen = np.argmax(
        (routing.width[..., None] == SPACE.blocks_C)
        & ((routing.expert[..., None] == SPACE.module_C) | (SPACE.blocks_C == 0)),
        axis=-1,
    )
    own = np.take_along_axis(bill, chosen[..., None], axis=-1)[counted].mean()
    assert own < bill[counted].mean(axis=0).min() - 0.2
    assert own < bill[counted].min(axis=-1).mean() + 0.05  # the oracle's


def test_opting_a_module_out_moves_only_the_tokens_that_it_had(route, unseen: Example) -> None:
    everything, without = route(0.1), route(0.1, (True, False, True))
    stayed = everything.expert != 1
    np.testing.assert_array_equal(without.expert[stayed], everything.expert[stayed])
    np.testing.assert_array_equal(without.width[stayed], everything.width[stayed])
    assert (~stayed).any()
    assert not (without.expert[~stayed] == 1).any()


@pytest.mark.parametrize("available", [(True, True, True), (True, False, True)])
@pytest.mark.parametrize("price", [0.0, 0.1, 0.4])
def test_it_runs_what_has_the_least_bill_of_all_candidates(price: float, available: tuple[bool, ...]) -> None:
    router, rng = make_example_router(GainRouter), np.random.default_rng(0)
    own_BSE, level_EM = rng.dirichlet(np.full(3, 0.4), (4, 24)), rng.normal(size=(3, 3)) * 0.2
    excess_BSEQ = np.cumsum(np.abs(rng.normal(size=(4, 24, 3, 4)) * 0.2), axis=-1)[..., ::-1]
    excess_BSEQ = np.where(np.arange(4) < np.array(SPACE.valid_ER.sum(1))[:, None], excess_BSEQ, 0.0)
    router.level_EM[...] = jnp.asarray(level_EM, jnp.float32)
    router.own_shares = lambda features, seen: jnp.asarray(own_BSE)
    router.excess_losses = lambda seen: jnp.asarray(excess_BSEQ)
    rival_BSM = rng.normal(size=(4, 24, 3)) * 0.1
    router.rival_losses = lambda seen, own: jnp.asarray(rival_BSM)
    features = draw_example(0).features.for_all_rows(price=price, available_E=available)
    routing, chosen = router.route(features), set()
    for row, place in np.ndindex(4, 24):
        own_E, excess_EQ = own_BSE[row, place], excess_BSEQ[row, place]
        bills = {(0, 0): sum(own_E[e] * (level_EM[e, e] + excess_EQ[e, 0]) for e in range(3))}
        for candidate, (e, rung) in enumerate(SPACE.pairs, start=1):
            if available[e]:
                predicted = own_E @ level_EM[:, e] + rival_BSM[row, place, e] + excess_EQ[e, rung + 1]
                bills[e, SPACE.blocks_C[candidate]] = predicted + price * SPACE.relative_cost_C[candidate]
        best = min(bills, key=bills.__getitem__)
        got = (int(routing.expert[row, place, 0]), int(routing.width[row, place, 0]))
        assert bills[got] == pytest.approx(bills[best], abs=1e-5)
        chosen.add(got)
    assert len(chosen) > (price > 0)


def test_rivals_are_the_next_best_modules_and_are_judged_by_n_grams() -> None:
    example = draw_example(0, rows=16)
    worse_C = np.array([0.0, 0.05, 0.1])[SPACE.module_C]  # the more the later the module, everywhere
    features = example.features._replace(outcomes_BSC=example.features.outcomes_BSC + worse_C)
    router = make_example_router(GainRouter, rivals=1, shrinkage=1)
    router.prepare(features)
    np.testing.assert_array_equal(router.rival_EV[...], [[1], [0], [0]])
    losses_BSC, own_BSE = np.asarray(features.outcomes_BSC), np.eye(3, dtype=np.float32)[example.module_BS]
    rival_BSM = np.asarray(router.rival_losses(router.seen(features), jnp.asarray(own_BSE)))
    counted = np.asarray(features.segment_ids_BS) > 0
    for own, (rival,) in enumerate(np.asarray(router.rival_EV[...])):
        here = counted & (example.module_BS == own)
        behind = losses_BSC[here][:, SPACE.widest_E[rival]] - losses_BSC[here][:, SPACE.widest_E[own]]
        # On marked tokens the module whose own text it is gains 1.8 nats more than on the others.
        got, true = rival_BSM[here][:, rival], behind - behind.mean()
        assert np.corrcoef(got, true)[0, 1] > 0.95
        assert not np.delete(rival_BSM[here], rival, axis=1).any()


@pytest.mark.parametrize("rivals", [0, 1])
def test_a_module_with_a_longer_ladder_joins_and_the_others_stay(rivals: int) -> None:
    fewer, features = SPACE.without(["south/three"]), draw_example(0, rows=16).features
    known = GainRouter(GainRouter.Config(rivals=rivals, shrinkage=1), fewer, 8, rngs=nnx.Rngs(0))
    known.prepare(features._replace(outcomes_BSC=features.outcomes_BSC[..., : len(fewer)]))
    joined = joined_router(known, SPACE, 8, rngs=nnx.Rngs(0))
    joined.join(known, features)
    was, now = (
        known.excess_losses(known.seen(features)),
        joined.excess_losses(joined.seen(features)),
    )
    np.testing.assert_array_equal(now[:, :, :2, :3], was)
    np.testing.assert_array_equal(now[:, :, :2, 3], 0)  # one more rung than the others have: their last one again
    np.testing.assert_array_equal(joined.level_EM[...][:2, :2], known.level_EM[...])
    if rivals:
        np.testing.assert_array_equal(joined.rival_EV[...][:2], [[1, 2], [0, 2]])
        own_BSE = jnp.broadcast_to(jnp.eye(2)[0], (*features.tokens_BS.shape, 2))
        before, after = (
            known.rival_losses(known.seen(features), own_BSE),
            joined.rival_losses(joined.seen(features), jnp.pad(own_BSE, 2 * [(0, 0)] + [(0, 1)])),
        )
        np.testing.assert_array_equal(after[..., :2], before)
    # What is counted of the newcomer is what a full training counts of it.
    anew = GainRouter(joined.config, SPACE, 8, rngs=nnx.Rngs(0))
    anew.prepare(features)
    np.testing.assert_allclose(joined.level_EM[...][2], anew.level_EM[...][2], rtol=1e-5)
    fitted = [router.rung_loss.ngram_excess[...].reshape(-1, 3, 3)[:, 2] for router in (joined, anew)]
    np.testing.assert_allclose(*fitted, atol=2e-2)
    assert joined.multiply_adds == anew.multiply_adds


def test_without_rivals_modules_are_judged_by_the_text_alone() -> None:
    router, features = make_example_router(GainRouter, rivals=0), draw_example(0).features
    router.prepare(features)
    own_BSE = jnp.full((4, 24, 3), 1 / 3)
    assert not np.asarray(router.rival_losses(router.seen(features), own_BSE)).any()


def test_a_hint_that_is_certain_decides_and_one_of_zeros_says_nothing() -> None:
    router, features = make_example_router(GainRouter), draw_example(0).features.for_all_rows(price=0)
    router.home_evidence.ngram_scores[...] = jnp.asarray(
        np.random.default_rng(0).normal(size=router.home_evidence.ngram_scores.shape) * 99
    )
    route = jax.jit(router.route)
    told = route(features._replace(hint_BE=jnp.log(jax.nn.one_hot(jnp.array([2, 0, 1, 1]), 3))))
    np.testing.assert_array_equal(told.expert[..., 0], np.array([2, 0, 1, 1])[:, None] + np.zeros((4, 24), int))
    np.testing.assert_array_equal(told.width[..., 0], WIDEST[np.asarray(told.expert)[..., 0]])
    for untold, nothing in zip(route(features), route(features._replace(hint_BE=jnp.zeros((4, 3)))), strict=True):
        np.testing.assert_array_equal(untold, nothing)


def test_a_hint_for_a_module_that_is_opted_out_leaves_the_next_best_on_its_text() -> None:
    router, features = make_example_router(GainRouter), draw_example(0).features.for_all_rows(price=0)
    router.level_EM[...] = jnp.array([[-0.3, -0.2, -0.1], [0, 0, 0], [0, 0, 0]])
    hint_BE = jnp.log(jax.nn.one_hot(jnp.zeros(4, int), 3))
    for out, expected in ((), 0), ((0,), 1), ((0, 1), 2):
        available_E = [e not in out for e in range(3)]
        routing = router.route(features.for_all_rows(available_E=available_E)._replace(hint_BE=hint_BE))
        assert (np.asarray(routing.expert) == expected).all()
        assert (np.asarray(routing.width) == WIDEST[expected]).all()
