"""AdamW and its learning rate schedules, made from a `TrainSpec`."""

from __future__ import annotations

from typing import Any

import jax
import optax

from moe_lab.training.spec import TrainSpec


def learning_rate(spec: TrainSpec) -> optax.Schedule:
    """Returns the learning rate of step s, counted from 0.

    With peak p, end e = p * final_fraction, warmup w and n steps:
        warmup    p * (s + 1) / w                                       while s < w: no step has rate 0
        constant  p
        cosine    e + (p - e) * (1 + cos(pi * (s - w) / (n - w))) / 2
        wsd       p until n - d, then p + (e - p) * (s - (n - d)) / d    where d = decay_steps
    """
    if spec.warmup_steps == 0:
        return _main_phase(spec)
    first = spec.learning_rate / spec.warmup_steps
    warmup = optax.linear_schedule(first, spec.learning_rate, max(1, spec.warmup_steps - 1))
    return optax.join_schedules([warmup, _main_phase(spec)], [spec.warmup_steps])


def _main_phase(spec: TrainSpec) -> optax.Schedule:
    """Returns the schedule after the warmup, counted from the warmup's end."""
    peak, steps = spec.learning_rate, max(1, spec.steps - spec.warmup_steps)
    if spec.schedule == "constant":
        return optax.constant_schedule(peak)
    if spec.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, steps, alpha=spec.final_fraction)
    decay = optax.linear_schedule(peak, peak * spec.final_fraction, spec.decay_steps)
    return optax.join_schedules([optax.constant_schedule(peak), decay], [steps - spec.decay_steps])


def decayed(params: Any) -> Any:
    """Marks the leaves that weight decay applies to: matrices and their stacks, not vectors and scalars."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def make_optimizer(spec: TrainSpec) -> optax.GradientTransformation:
    """Returns global-norm clipping (where asked for) followed by AdamW, whose decay follows the schedule."""
    b1, b2 = spec.betas
    adamw = optax.adamw(learning_rate(spec), b1=b1, b2=b2, weight_decay=spec.weight_decay, mask=decayed)
    if spec.grad_clip is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(spec.grad_clip), adamw)
