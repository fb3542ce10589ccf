"""The contract of a shrinking strategy: which hidden units matter, and what the smaller module learns.

The framework measures activations, sorts and cuts the module, distils it and publishes the child; a strategy in
`distill/<name>/` answers the two questions that are open to research.

Shape letters: B batch, S sequence, V vocabulary, F hidden units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from moe_lab.config.spec import Spec
from moe_lab.experts.weights import ExpertWeights


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """What the hidden units of one layer did on calibration text."""

    mean_abs_F: np.ndarray  # mean |activation|
    mean_square_F: np.ndarray  # mean activation^2
    down_norm_F: np.ndarray  # Euclidean norm of each unit's row of `down`


class ShrinkStrategy:
    """A subclass sets `Config` and defines `importance` and `loss`."""

    Config: ClassVar[type[Spec]]

    def __init__(self, config: Any):
        self.config = config

    def importance(self, statistics: Mapping[int, LayerStatistics], weights: ExpertWeights) -> dict[int, np.ndarray]:
        """A score per hidden unit and layer; the highest are kept, and come first in every rung of the ladder."""
        raise NotImplementedError

    def loss(
        self, student_BSV: jax.Array, teacher_BSV: jax.Array, targets_BS: jax.Array, mask_BS: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the child minimises, averaged over the tokens of the mask."""
        raise NotImplementedError


def order_by_importance(scores: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Falling score; equal scores keep their order, so that a sorted module stays as it is."""
    return {layer: np.argsort(-np.asarray(score), kind="stable") for layer, score in scores.items()}
