"""FLOPs of a planned step on one device: counted from shapes, and the compiler's with its loops counted in full."""

from __future__ import annotations

from moe_lab.experts.kinds import DEFAULT, find_kind
from moe_lab.nn.kernels.block_rows import whole_rows
from moe_lab.nn.losses import choose_tokens_at_once, cut_positions
from moe_lab.nn.stack import stack_trunk
from moe_lab.planning.compiled import Compiled
from moe_lab.planning.plan import Plan


def _tokens(plan: Plan) -> int:
    return plan.rows // plan.topology.num_devices * plan.model.settings.seq_len


def _layer_flops(plan: Plan, layer: int) -> float:
    """Forward FLOPs of one layer; a grouped matmul as if its budget were full, attention over half the square."""
    spec = plan.model.trunk
    flops = 2 * _tokens(plan) * spec.multiply_adds(layer, plan.model.settings.seq_len)
    if layer in plan.placements:
        flops += 2 * whole_rows(plan.budget) * find_kind(DEFAULT).cost(spec.d_model, spec.block).multiply_adds
    return flops


def _head_flops(plan: Plan) -> float:
    return 2 * _tokens(plan) * plan.model.trunk.head_multiply_adds


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
