"""The gain router keeps the contract, and buys width where it pays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab.lab import find_lab
from moe_lab.nn.pool import Routing
from moe_lab.routing.conformance import check_router
from moe_lab.routing.example import SPACE, Example, draw_example, learn_example, make_example_router
from moe_lab.routing.router import Router

pytestmark = pytest.mark.slow

lab = find_lab()
GainRouter = lab.load(lab.get("routers", "gain"))
WIDEST = SPACE.blocks_C[SPACE.widest_E]


@pytest.fixture(scope="module")
def trained() -> Router:
    return learn_example(make_example_router(GainRouter, half_life=16, hidden=16, prices=(0.01, 20.0)))


@pytest.fixture(scope="module")
def unseen() -> Example:
    return draw_example(7, rows=32)


@pytest.fixture(scope="module")
def route(trained: Router, unseen: Example):
    run = jax.jit(lambda features: trained.route(features))

    def at(price: float, available: tuple[bool, ...] = (True, True, True)) -> Routing:
        shown = unseen.features._replace(price=jnp.float32(price), available_E=jnp.array(available))
        return Routing(*(np.asarray(field)[..., 0] for field in run(shown)))

    return at


def test_it_keeps_the_contract() -> None:
    check_router(GainRouter)


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


def test_in_doubt_two_modules_share_a_token_and_otherwise_one_has_it_all() -> None:
    router, features = make_example_router(GainRouter), draw_example(0).features._replace(price=jnp.float32(0))
    unsure = jax.jit(lambda shown: router.route(shown))(features)  # fresh heads say the same of every module
    np.testing.assert_allclose(unsure.weight, 0.5)
    assert (np.asarray(unsure.width) > 0).all()
    router.module_head.bias[...] = jnp.array([0.0, 9.0, 0.0])
    sure = jax.jit(lambda shown: router.route(shown))(features)
    np.testing.assert_array_equal(sure.weight[..., 0], 1.0)
    np.testing.assert_array_equal(sure.expert[..., 0], 1)
    assert not np.asarray(sure.width)[..., 1].any()
