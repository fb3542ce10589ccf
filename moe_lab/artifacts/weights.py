"""The tensors of a module: its weights as they are published, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from moe_lab.artifacts.tensor_names import by_layer, layer_names
from moe_lab.experts.kind import ExpertKind
from moe_lab.experts.weights import ExpertWeights


def to_tensors(weights: ExpertWeights, kind: ExpertKind) -> dict[str, np.ndarray]:
    """As published: `layers.<layer>.<part>`, block-major, so that a narrower width is a prefix."""
    return {
        name: np.asarray(projection)
        for layer, blocks in sorted(weights.items())
        for name, projection in zip(layer_names(layer, kind.parts), blocks, strict=True)
    }


def from_tensors(tensors: Mapping[str, np.ndarray], kind: ExpertKind) -> ExpertWeights:
    """The inverse of `to_tensors`."""
    return {
        layer: kind.from_parts([jnp.asarray(parts[part]) for part in kind.parts])
        for layer, parts in by_layer(tensors).items()
    }
