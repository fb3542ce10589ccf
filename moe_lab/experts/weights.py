"""The weights of one expert module: a run of blocks per routed layer.

Shape letters: D model width, F hidden units, N blocks, U hidden units per block.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from moe_lab.experts.interface import Interface
from moe_lab.experts.kind import ExpertKind
from moe_lab.nn.pool import Blocks

ExpertWeights = dict[int, Blocks]
"""By routed layer: what the module's kind says, a NamedTuple of arrays in blocks."""


def init_expert(key: jax.Array, interface: Interface, widths: Mapping[int, int]) -> ExpertWeights:
    """A fresh module of the interface's kind: composed with the trunk it changes nothing yet."""
    kind = interface.expert_kind
    return {
        layer: kind.init(jax.random.fold_in(key, layer), interface.d_model, widths[layer], interface.block)
        for layer in interface.routed_layers
    }


def cut(weights: ExpertWeights, width: int, kind: ExpertKind) -> ExpertWeights:
    """The narrower module that the first `width` hidden units make; a layer that is narrower stays as it is."""
    return {layer: kind.cut(blocks, width) for layer, blocks in weights.items()}


def permute(weights: ExpertWeights, order: Mapping[int, np.ndarray], kind: ExpertKind) -> ExpertWeights:
    """Reorders the hidden units of every layer: the function stays."""
    permuted = {}
    for layer, blocks in weights.items():
        index, units = np.asarray(order[layer]), len(kind.output_norms(blocks))
        assert sorted(index) == list(range(units)), "an order names every hidden unit once"
        permuted[layer] = kind.permute(blocks, index)
    return permuted


def count_parameters(weights: ExpertWeights) -> int:
    """Stored numbers, padding included."""
    return sum(projection.size for blocks in weights.values() for projection in blocks)
