"""Predicts from the training items that look alike: what linear heads cannot bend to.

Legend: N items, M training items, X features, Z text features, W embedding width, C candidates.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from moe_lab.questions.features import FeatureMap

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_NARROWNESS = 10.0
_GROUP, _NUMBER = 0.3, 0.1
_ROWS = 512


@dataclasses.dataclass(frozen=True)
class Embedding:
    """A text's main directions beside its group and numbers, as a vector of length 1.

    A sentence encoder's vectors are left to the heads: alike by them too, items tell less on one table of three.
    """

    direction_ZW: np.ndarray  # float32
    num_encoded: int
    num_groups: int
    group_factor: float
    number_factor: float

    def __call__(self, x_NX: csr_matrix) -> np.ndarray:
        """Embeddings of items [N, W], float32."""
        text = self.direction_ZW.shape[0]
        projected = np.asarray(x_NX[:, :text] @ self.direction_ZW)
        rest = x_NX[:, text + self.num_encoded :].toarray()
        groups = rest[:, : self.num_groups] * self.group_factor
        numbers = rest[:, self.num_groups :] * self.number_factor
        joined = np.concatenate([_unit(projected), groups, numbers], axis=1)
        return _unit(joined).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The mean outcome of all training items, weighted by `exp(10 * (cosine - 1))` of their embeddings."""

    embedding: Embedding
    points_MW: np.ndarray  # float32
    quality_MC: np.ndarray  # float32

    def __call__(self, x_NX: csr_matrix) -> np.ndarray:
        """Predicted qualities [N, C]."""
        at_NW = self.embedding(x_NX)
        parts = [self._weighted(at_NW[start : start + _ROWS]) for start in range(0, len(at_NW), _ROWS)]
        return np.concatenate(parts) if parts else np.zeros((0, self.quality_MC.shape[1]))

    def _weighted(self, at_NW: np.ndarray) -> np.ndarray:
        weight_NM = np.exp(_NARROWNESS * (at_NW @ self.points_MW.T - 1))
        return np.asarray(weight_NM @ self.quality_MC / weight_NM.sum(axis=1, keepdims=True), np.float64)


def fit_embedding(x_NX: csr_matrix, features: FeatureMap, directions: int, seed: int) -> Embedding:
    """Finds the text's main directions by a randomised singular value decomposition; no outcome is looked at."""
    from sklearn.utils.extmath import randomized_svd

    text = sum(map(len, features.kept))
    most = min(directions, text - 1, x_NX.shape[0] - 1)
    found = np.zeros((text, 0), np.float32)
    if most > 0:
        found = randomized_svd(x_NX[:, :text], most, n_iter=1, random_state=seed)[2].T.astype(np.float32)
    return make_embedding(np.ascontiguousarray(found), features)


def make_embedding(direction_ZW: np.ndarray, features: FeatureMap) -> Embedding:
    """The embedding of known directions, with groups and numbers scaled as it needs them."""
    settings = features.settings
    return Embedding(
        direction_ZW=direction_ZW,
        num_encoded=len(features.encoded_mean_W),
        num_groups=features.num_groups,
        group_factor=_GROUP / settings.group_weight if settings.group_weight else 0.0,
        number_factor=_NUMBER / settings.number_weight if settings.number_weight else 0.0,
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
