"""The tensors of a module: its weights as they are published, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from moe_lab.artifacts.tensor_names import by_layer, layer_names
from moe_lab.experts.weights import ExpertWeights
from moe_lab.nn.pool import PROJECTIONS, Blocks


def to_tensors(weights: ExpertWeights) -> dict[str, np.ndarray]:
    """As published: `layers.<layer>.gate|up|down`, block-major, so that a narrower width is a prefix."""
    return {
        name: np.asarray(projection)
        for layer, blocks in sorted(weights.items())
        for name, projection in zip(layer_names(layer, PROJECTIONS), blocks, strict=True)
    }


def from_tensors(tensors: Mapping[str, np.ndarray]) -> ExpertWeights:
    """The inverse of `to_tensors`."""
    return {
        layer: Blocks(*(jnp.asarray(parts[projection]) for projection in PROJECTIONS))
        for layer, parts in by_layer(tensors).items()
    }
