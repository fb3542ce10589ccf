"""What is counted of the widths is the mean that was measured, module by module."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.routing.example import D_MODEL, SPACE, draw_example
from moe_lab.routing.excess import ExcessRouter
from moe_lab.routing.ladder import LadderConfig

pytestmark = pytest.mark.slow
COST_EQ = np.concatenate([np.zeros((3, 1)), SPACE.cost_C[SPACE.candidate_ER]], axis=1)


def make(**settings: float) -> ExcessRouter:
    return ExcessRouter(LadderConfig(**settings), SPACE, D_MODEL, rngs=nnx.Rngs(0))


def test_before_anything_is_counted_width_is_worth_a_little_in_proportion() -> None:
    router, features = make(), draw_example(0).features
    excess_BSEQ = np.asarray(router.excess_losses(router.seen(features)))
    np.testing.assert_allclose(excess_BSEQ, np.broadcast_to(0.25 * (1 - COST_EQ / COST_EQ[:, -1:]), excess_BSEQ.shape))


def test_each_module_learns_from_its_own_text_what_its_rungs_lose() -> None:
    example = draw_example(0, rows=32)
    router, counted = make(shrinkage=1e-3), np.asarray(example.features.segment_ids_BS) > 0
    router.prepare(example.features)
    excess_BSEQ = np.asarray(router.excess_losses(router.seen(example.features)))
    for e in range(3):
        for marked, gain in ((True, 2.0), (False, 0.2)):
            here = counted & (example.module_BS == e) & (example.marked_BS == marked)
            truth_Q = gain * (1 - COST_EQ[e] / COST_EQ[e, -1])
            np.testing.assert_allclose(excess_BSEQ[here][:, e].mean(0), truth_Q, atol=0.05)


def test_levels_are_the_mean_losses_above_the_bare_trunk() -> None:
    example = draw_example(1, rows=32)
    hint_BE = jnp.log(jnp.eye(3)[jnp.zeros(32, int)])  # all of it is said to be the first module's
    router, before = make(), np.asarray(make().level_EM[...])
    router.prepare(example.features._replace(hint_BE=hint_BE))
    losses_TC = np.asarray(example.features.outcomes_BSC)[np.asarray(example.features.segment_ids_BS) > 0]
    mean_M = (losses_TC[:, SPACE.widest_E] - losses_TC[:, :1]).mean(axis=0)
    # A difference of two float32 means is as exact as the means are, however small it comes out.
    rounding = 8 * np.finfo(np.float32).eps * float(np.abs(losses_TC).mean(axis=0).max())
    np.testing.assert_allclose(router.level_EM[...][0], mean_M, rtol=0, atol=rounding)
    np.testing.assert_array_equal(router.level_EM[...][1:], before[1:])  # no text is theirs


def test_nothing_is_left_for_gradients_but_with_hidden_states() -> None:
    features = draw_example(0).features
    assert float(make().outcome_loss(features)[0]) == 0
    assert float(make(ngrams=0, hidden=8).outcome_loss(features)[0]) > 0
