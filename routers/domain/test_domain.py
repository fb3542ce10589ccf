"""The domain router keeps the contract, and learns the module of a document and what its rungs lose on average."""

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
DomainRouter = lab.load(lab.get("routers", "domain"))


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
        shown = unseen.features._replace(price=jnp.float32(price), available_E=jnp.array(available))
        return Routing(*(np.asarray(field)[..., 0] for field in run(shown)))

    return at


def test_it_keeps_the_contract() -> None:
    check_router(DomainRouter)


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
