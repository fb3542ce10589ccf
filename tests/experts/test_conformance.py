"""The suite of shrinking strategies passes an honest strategy and names the rule that a broken one breaks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab.config.spec import Spec
from moe_lab.experts.conformance import CHECKS, check_strategy
from moe_lab.experts.shrink import ShrinkStrategy


class NoConfig(Spec):
    """Nothing to set."""


class Honest(ShrinkStrategy):
    """Units by the size of their output, and plain cross-entropy with the text."""

    Config = NoConfig

    def importance(self, statistics, weights):
        return {layer: stats.mean_abs_F * stats.down_norm_F for layer, stats in statistics.items()}

    def loss(self, student_BSV, teacher_BSV, targets_BS, mask_BS):
        log_BSV = jax.nn.log_softmax(student_BSV)
        loss_BS = -jnp.take_along_axis(log_BSV, targets_BS[..., None], axis=-1)[..., 0]
        loss = (loss_BS * mask_BS).sum() / jnp.maximum(mask_BS.sum(), 1.0)
        return loss, {"text_loss": loss}


class LooseConfig:
    """Not a Spec."""


class Loose(Honest):
    Config: Any = LooseConfig


class OneLayer(Honest):
    def importance(self, statistics, weights):
        return dict([next(iter(super().importance(statistics, weights).items()))])


class KeepsPadding(Honest):
    def importance(self, statistics, weights):
        return {layer: -score for layer, score in super().importance(statistics, weights).items()}


class Dice(Honest):
    draws = np.random.default_rng(0)

    def importance(self, statistics, weights):
        scores = super().importance(statistics, weights)
        return {layer: score * (1 + self.draws.random(score.shape)) for layer, score in scores.items()}


class Scribbles(Honest):
    def importance(self, statistics, weights):
        for stats in statistics.values():
            stats.mean_square_F[:] = 0
        return super().importance(statistics, weights)


class FirstIsBest(Honest):
    def importance(self, statistics, weights):
        scores = super().importance(statistics, weights)
        return {layer: (score > 0) / np.arange(1, len(score) + 1) for layer, score in scores.items()}


class OneEach(Honest):
    def loss(self, student_BSV, teacher_BSV, targets_BS, mask_BS):
        return jnp.square(student_BSV - teacher_BSV).mean(-1) * mask_BS, {}


class IgnoresMask(Honest):
    def loss(self, student_BSV, teacher_BSV, targets_BS, mask_BS):
        return super().loss(student_BSV, teacher_BSV, targets_BS, jnp.ones_like(mask_BS))


class Sums(Honest):
    def loss(self, student_BSV, teacher_BSV, targets_BS, mask_BS):
        loss, metrics = super().loss(student_BSV, teacher_BSV, targets_BS, mask_BS)
        return loss * mask_BS.sum(), metrics


class NothingIsNaN(Honest):
    def loss(self, student_BSV, teacher_BSV, targets_BS, mask_BS):
        loss_BS = jnp.square(student_BSV - teacher_BSV).mean(-1)
        return (loss_BS * mask_BS).sum() / mask_BS.sum(), {}


class ReadsAValue(Honest):
    def loss(self, student_BSV, teacher_BSV, targets_BS, mask_BS):
        loss, metrics = super().loss(student_BSV, teacher_BSV, targets_BS, mask_BS)
        return (loss if float(loss) > 0 else -loss), metrics


class LearnsNothing(Honest):
    def loss(self, student_BSV, teacher_BSV, targets_BS, mask_BS):
        return super().loss(jax.lax.stop_gradient(student_BSV), teacher_BSV, targets_BS, mask_BS)


@pytest.mark.slow
def test_an_honest_strategy_passes() -> None:
    check_strategy(Honest)


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [
        (Loose, "must be a moe_lab.config.Spec"),
        (OneLayer, "the module has"),
        (KeepsPadding, "unit of padding"),
        (Dice, "differently"),
        (Scribbles, "changed mean_square_F"),
        (FirstIsBest, "in another order"),
        (OneEach, "must be one number"),
        (IgnoresMask, "outside the mask"),
        (Sums, "average over the tokens"),
        (NothingIsNaN, "empty mask"),
        (ReadsAValue, "jittable"),
        (LearnsNothing, "no gradient"),
    ],
)
def test_a_broken_rule_is_named(strategy: type[ShrinkStrategy], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_strategy(strategy)


def test_every_rule_says_what_it_holds() -> None:
    assert all(check.__doc__ for check in CHECKS)
