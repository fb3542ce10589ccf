"""The fixed router keeps the contract, and falls back to the trunk."""

from __future__ import annotations

import numpy as np
import pytest

from moe_lab import LabError, find_lab
from moe_lab.testing import SPACE, check_router, draw_example, make_example_router

lab = find_lab()
FixedRouter = lab.load(lab.get("routers", "fixed"))


@pytest.mark.slow
def test_it_keeps_the_contract() -> None:
    check_router(FixedRouter)
    check_router(FixedRouter, candidate="south/three:32")


@pytest.mark.slow
@pytest.mark.parametrize("candidate", SPACE.names)
def test_every_token_runs_the_candidate(candidate: str) -> None:
    routing = make_example_router(FixedRouter, candidate=candidate).route(draw_example(0).features)
    module, _, width = candidate.partition(":")
    assert (np.asarray(routing.width) == (int(width) // 16 if width else 0)).all()
    assert (np.asarray(routing.weight) == 1).all()
    if width:
        assert (np.asarray(routing.expert) == SPACE.modules.index(module)).all()


def test_opted_out_it_leaves_the_bare_trunk() -> None:
    router, features = make_example_router(FixedRouter, candidate="east/two:32"), draw_example(0).features
    others = features.for_all_rows(available_E=[False, True, False])
    assert (np.asarray(router.route(others).width) == 2).all()
    without = features.for_all_rows(available_E=[True, False, True])
    assert not np.asarray(router.route(without).width).any()


def test_a_candidate_that_is_not_composed_is_named() -> None:
    with pytest.raises(LabError, match=r'"east/two:23" is not in the composition. Did you mean "east/two:32"'):
        make_example_router(FixedRouter, candidate="east/two:23")
