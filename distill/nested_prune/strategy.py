"""Keeps the hidden units whose output is largest on calibration text, then learns from the teacher's distribution.

Importance of unit i: `mean |a_i| * ||down_i||`, the size of what it adds to the residual stream (the per-channel score
of pruned ragged experts; compare Muralidharan et al. 2024, arXiv 2407.14679, section 2.2).
Loss: `(1 - teacher_share) CE + teacher_share T^2 KL(teacher || student)` at temperature T (Hinton et al. 2015,
arXiv 1503.02531, section 2), over the whole vocabulary, so nothing of the teacher's tail is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, PositiveFloat

from moe_lab import ExpertWeights, LayerStatistics, ShrinkStrategy, Spec


class NestedPruneConfig(Spec):
    """`teacher_share` of the loss comes from the teacher, the rest from the text."""

    temperature: PositiveFloat = 1.0
    teacher_share: Annotated[float, Field(ge=0, le=1)] = 0.5


class NestedPrune(ShrinkStrategy):
    """Rank by output size, distil by KL and cross-entropy."""

    Config = NestedPruneConfig

    def importance(self, statistics: Mapping[int, LayerStatistics], weights: ExpertWeights) -> dict[int, np.ndarray]:
        return {layer: stats.mean_abs_F * stats.down_norm_F for layer, stats in statistics.items()}

    def loss(
        self, student_BSV: jax.Array, teacher_BSV: jax.Array, targets_BS: jax.Array, mask_BS: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        temperature, share = self.config.temperature, self.config.teacher_share
        student = jax.nn.log_softmax(student_BSV)
        text_BS = -jnp.take_along_axis(student, targets_BS[..., None], axis=-1)[..., 0]
        soft_student = jax.nn.log_softmax(student_BSV / temperature)
        soft_teacher = jax.nn.log_softmax(teacher_BSV / temperature)
        divergence_BS = temperature**2 * (jnp.exp(soft_teacher) * (soft_teacher - soft_student)).sum(-1)
        tokens = jnp.maximum(mask_BS.sum(), 1.0)
        text, divergence = (text_BS * mask_BS).sum() / tokens, (divergence_BS * mask_BS).sum() / tokens
        return (1 - share) * text + share * divergence, {"text_loss": text, "teacher_divergence": divergence}
