"""Held-out figures of trunks and modules: bits per byte, and the statistics that shrinking ranks by.

Shape letters: B batch, S sequence, T = B * S tokens, F hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_lab.compose.parts import LoadedTrunk
from moe_lab.data import Batch
from moe_lab.experts.kind import ExpertKind
from moe_lab.experts.shrink import LayerStatistics
from moe_lab.experts.weights import ExpertWeights
from moe_lab.jobs.objectives import single_module_experts

BatchLosses = Callable[[Batch], jax.Array]


def bits_per_byte(losses: BatchLosses, batches: Iterable[Batch]) -> float:
    """Loss of all counted tokens in bits, over the bytes that they stand for.

    As lm-evaluation-harness counts: each document after an end token, its first token included, its end neither in
    the loss nor in the bytes. `eval_batches` makes rows of which this holds.
    """
    nats = total_bytes = 0.0
    for batch in batches:
        nats += float((np.asarray(losses(batch), np.float64) * batch.loss_mask).sum())
        total_bytes += float(batch.target_bytes.sum())
    return nats / math.log(2) / total_bytes


@partial(jax.jit, static_argnums=0)
def _trunk_losses(graph: nnx.GraphDef, state: nnx.State, batch: Any) -> jax.Array:
    trunk = nnx.merge(graph, state)
    output = trunk.forward(batch.tokens, batch.segment_ids, batch.positions)
    return trunk.losses(output.hidden_BSD, batch.targets)


@partial(jax.jit, static_argnums=(0, 1))
def _module_losses(
    graph: nnx.GraphDef, kind: ExpertKind, state: nnx.State, weights: ExpertWeights, blocks: jax.Array, batch: Any
) -> jax.Array:
    rows, sequence = batch.tokens.shape
    experts = single_module_experts(weights, kind, jnp.broadcast_to(blocks, (rows,)), sequence)
    trunk = nnx.merge(graph, state)
    output = trunk.forward(batch.tokens, batch.segment_ids, batch.positions, experts)
    return trunk.losses(output.hidden_BSD, batch.targets)


def trunk_losses(graph: nnx.GraphDef, state: nnx.State) -> BatchLosses:
    """The bare trunk."""
    return partial(_trunk_losses, graph, state)


def module_losses(trunk: LoadedTrunk, weights: ExpertWeights, kind: ExpertKind, blocks: int) -> BatchLosses:
    """The trunk with one module at one width; every width runs the same compiled program."""
    return partial(_module_losses, trunk.graph, kind, trunk.state, weights, jnp.int32(blocks))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _activation_sums(
    graph: nnx.GraphDef, kind: ExpertKind, activation: str, state: nnx.State, weights: ExpertWeights, batch: Any
) -> dict[int, tuple[jax.Array, jax.Array]]:
    rows, sequence = batch.tokens.shape
    full_B = jnp.full((rows,), max(blocks.num_blocks for blocks in weights.values()), jnp.int32)
    experts = single_module_experts(weights, kind, full_B, sequence)._replace(keep_inputs=True)
    output = nnx.merge(graph, state).forward(batch.tokens, batch.segment_ids, batch.positions, experts)
    mask_T1 = batch.loss_mask.reshape(-1, 1)
    sums = {}
    for layer, h_TD in output.side.inputs.items():
        a_TF = kind.activations(h_TD, weights[layer], activation) * mask_T1
        sums[layer] = (jnp.abs(a_TF).sum(0), jnp.square(a_TF).sum(0))
    return sums


def layer_statistics(
    trunk: LoadedTrunk, weights: ExpertWeights, kind: ExpertKind, batches: Iterable[Batch]
) -> dict[int, LayerStatistics]:
    """What every hidden unit of a module does on calibration text, run alone at full width."""
    totals: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    tokens = 0.0
    for batch in batches:
        sums = _activation_sums(trunk.graph, kind, trunk.spec.activation, trunk.state, weights, batch)
        for layer, pair in sums.items():
            before = totals.get(layer, (np.zeros(()), np.zeros(())))
            totals[layer] = tuple(np.asarray(new, np.float64) + old for new, old in zip(pair, before, strict=True))
        tokens += float(batch.loss_mask.sum())
    return {
        layer: LayerStatistics(
            mean_abs_F=total_abs / tokens,
            mean_square_F=total_square / tokens,
            down_norm_F=kind.output_norms(weights[layer]),
        )
        for layer, (total_abs, total_square) in totals.items()
    }
