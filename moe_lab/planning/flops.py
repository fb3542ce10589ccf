"""FLOPs of a planned step on one device: counted from shapes, and the compiler's with its loops counted in full."""

from __future__ import annotations

from moe_lab.nn.kernels.block_rows import whole_rows
from moe_lab.planning.abstract_step import layer_kinds, stacks
from moe_lab.planning.compiled import Compiled
from moe_lab.planning.plan import Plan


def _layer_flops(plan: Plan, layer: int) -> float:
    """Forward FLOPs of one layer; a grouped matmul as if its budget were full, attention over half the square."""
    spec, settings = plan.model.trunk, plan.model.settings
    tokens = plan.rows // plan.topology.num_devices * settings.seq_len
    head = spec.attention_dim
    flops = 4 * tokens * spec.d_model * head * (spec.num_heads + spec.kv_heads)
    flops += 2 * tokens * settings.seq_len * spec.num_heads * head
    if spec.shared_ffn or layer not in spec.routed_layers:
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

    The compiler gives one figure in which every loop counts once. Outside the loops is the head (in training its
    forward pass and one backward matmul, for the trunk is frozen); loops share the rest as their layers' forward FLOPs.
    """
    assert isinstance(plan.result, Compiled)
    spec = plan.model.trunk
    outside = _head_flops(plan) * (2 if plan.model.settings.train else 1)
    once = total = 0.0
    for first, unit, repeats in stacks(layer_kinds(spec, plan.placements)):
        body = sum(_layer_flops(plan, layer) for layer in range(first, first + unit))
        once, total = once + body, total + repeats * body
    return outside + (plan.result.flops_loops_once - outside) * total / once
