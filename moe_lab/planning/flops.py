"""FLOPs of a planned step on one device: counted from shapes, and the compiler's with its loops counted in full."""

from __future__ import annotations

from moe_lab.nn.kernels.block_rows import whole_rows
from moe_lab.nn.losses import choose_tokens_at_once, cut_positions
from moe_lab.nn.stack import stack_trunk
from moe_lab.planning.compiled import Compiled
from moe_lab.planning.plan import Plan


def _layer_flops(plan: Plan, layer: int) -> float:
    """Forward FLOPs of one layer; a grouped matmul as if its budget were full, attention over half the square."""
    spec, settings = plan.model.trunk, plan.model.settings
    tokens = plan.rows // plan.topology.num_devices * settings.seq_len
    head = spec.attention_dim
    flops = 4 * tokens * spec.d_model * head * (spec.num_heads + spec.kv_heads)
    flops += 2 * tokens * settings.seq_len * spec.num_heads * head
    if spec.has_ffn(layer):
        flops += 6 * tokens * spec.d_model * spec.ffn_width
    if layer in plan.placements:
        flops += 6 * whole_rows(plan.budget) * spec.d_model * spec.block
    return flops


def _head_flops(plan: Plan) -> float:
    tokens = plan.rows // plan.topology.num_devices * plan.model.settings.seq_len
    return 2 * tokens * plan.model.trunk.d_model * plan.model.trunk.vocab_size


def forward_flops(plan: Plan) -> float:
    """Forward FLOPs of the whole step, counted from shapes: matmuls only."""
    return _head_flops(plan) + sum(_layer_flops(plan, layer) for layer in range(plan.model.trunk.num_layers))


def step_flops(plan: Plan) -> float:
    """The compiler's FLOPs, with each loop over layers counted as often as it runs.

    The compiler gives one figure in which every loop counts once. The head's goes over the positions (in training its
    forward pass and one backward matmul, for the trunk is frozen); those over layers share the rest as their layers'
    forward FLOPs.
    """
    assert isinstance(plan.result, Compiled)
    head = _head_flops(plan) * (2 if plan.model.settings.train else 1)
    once = total = 0.0
    for stack in stack_trunk(plan.model.trunk, plan.placements):
        body = sum(_layer_flops(plan, layer) for layer in range(stack.first, stack.first + stack.unit))
        once, total = once + body, total + stack.repeats * body
    return head + (plan.result.flops_loops_once - head * _share_of_head(plan)) * total / once


def _share_of_head(plan: Plan) -> float:
    """How much of the head one turn of its loop makes."""
    shape_BS = plan.rows, plan.model.settings.seq_len
    at_once = choose_tokens_at_once(plan.model.trunk.vocab_size, plan.topology.num_devices)
    return cut_positions(shape_BS, at_once) / shape_BS[1]
