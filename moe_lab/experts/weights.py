"""The weights of one expert module: a run of blocks per routed layer.

Shape letters: D model width, F hidden units, N blocks, B hidden units per block.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.experts.interface import Interface
from moe_lab.nn.pool import Blocks, from_blocks, to_blocks

ExpertWeights = dict[int, Blocks]


def init_expert(key: jax.Array, interface: Interface, widths: Mapping[int, int]) -> ExpertWeights:
    """A fresh module whose `down` is zero: composed with the trunk it changes nothing yet."""
    init = jax.nn.initializers.truncated_normal(interface.d_model**-0.5)
    weights = {}
    for layer in interface.routed_layers:
        gate_key, up_key = jax.random.split(jax.random.fold_in(key, layer))
        shape = (interface.d_model, widths[layer])
        down = jnp.zeros(shape[::-1], jnp.float32)
        weights[layer] = to_blocks(init(gate_key, shape), init(up_key, shape), down, interface.block)
    return weights


def cut(weights: ExpertWeights, width: int) -> ExpertWeights:
    """The narrower module that the first `width` hidden units make; a layer that is narrower stays as it is."""
    narrowed = {}
    for layer, blocks in weights.items():
        gate, up, down = from_blocks(blocks)
        narrowed[layer] = to_blocks(gate[:, :width], up[:, :width], down[:width], blocks.gate.shape[2])
    return narrowed


def permute(weights: ExpertWeights, order: Mapping[int, np.ndarray]) -> ExpertWeights:
    """Reorders the hidden units of every layer, columns of gate and up with rows of down: the function stays."""
    permuted = {}
    for layer, blocks in weights.items():
        gate, up, down = from_blocks(blocks)
        index = np.asarray(order[layer])
        assert sorted(index) == list(range(gate.shape[1])), "an order names every hidden unit once"
        permuted[layer] = to_blocks(gate[:, index], up[:, index], down[index], blocks.gate.shape[2])
    return permuted


def count_parameters(weights: ExpertWeights) -> int:
    """Stored numbers, padding included."""
    return sum(projection.size for blocks in weights.values() for projection in blocks)
