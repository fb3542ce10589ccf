"""Schedules against their closed forms, the optimizer against AdamW written out in numpy."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moe_lab.training import TrainSpec
from moe_lab.training.optimizer import learning_rate, make_optimizer


def spec_of(**changes: Any) -> TrainSpec:
    return TrainSpec(**{"steps": 100, "batch_size": 1, "seq_len": 1, "learning_rate": 0.5} | changes)


def closed_form(spec: TrainSpec, step: int) -> float:
    peak, end, warmup, steps = (
        spec.learning_rate,
        spec.learning_rate * spec.final_fraction,
        spec.warmup_steps,
        spec.steps,
    )
    if step < warmup:
        return peak * (step + 1) / warmup
    if spec.schedule == "cosine":
        return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
    decay_from = steps - spec.decay_steps
    if spec.schedule == "wsd" and step >= decay_from:
        return peak + (end - peak) * (step - decay_from) / spec.decay_steps
    return peak


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    schedule=st.sampled_from(["cosine", "wsd", "constant"]),
    steps=st.integers(1, 60),
    warmup=st.integers(0, 60),
    decay=st.sampled_from([0.01, 0.2, 0.5, 1.0]),
    final=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_every_step_of_every_schedule_equals_the_closed_form(
    schedule: str, steps: int, warmup: int, decay: float, final: float
) -> None:
    assume(warmup + (max(1, round(decay * steps)) if schedule == "wsd" else 0) <= steps)
    spec = spec_of(schedule=schedule, steps=steps, warmup_steps=warmup, decay_fraction=decay, final_fraction=final)
    rates = learning_rate(spec)(jnp.arange(60))  # one shape, so that JAX compiles once; a constant is a scalar
    found = np.broadcast_to(rates, 60)[:steps]
    np.testing.assert_allclose(found, [closed_form(spec, step) for step in range(steps)], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_warmup_meets_the_peak_and_no_step_is_wasted() -> None:
    rate = learning_rate(spec_of(warmup_steps=10))
    assert float(rate(0)) == pytest.approx(0.05)
    assert float(rate(9)) == pytest.approx(0.5)
    assert float(rate(10)) == pytest.approx(0.5)


def adamw(spec: TrainSpec, params: dict, gradients: list[dict]) -> dict:
    """Loshchilov and Hutter, Decoupled Weight Decay Regularization, algorithm 2, in float64."""
    b1, b2 = spec.betas
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    for step, gradient in enumerate(gradients):
        norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in gradient.values()))
        scale = 1.0 if spec.grad_clip is None else min(1.0, spec.grad_clip / norm)
        rate = closed_form(spec, step)
        for name, value in params.items():
            leaf = gradient[name] * scale
            first[name] = b1 * first[name] + (1 - b1) * leaf
            second[name] = b2 * second[name] + (1 - b2) * leaf**2
            direction = first[name] / (1 - b1 ** (step + 1)) / (np.sqrt(second[name] / (1 - b2 ** (step + 1))) + 1e-8)
            decay = spec.weight_decay if value.ndim >= 2 else 0.0
            params = params | {name: params[name] - rate * (direction + decay * params[name])}
    return params


@pytest.mark.slow
@pytest.mark.parametrize("grad_clip", [None, 0.5])
def test_updates_equal_adamw_with_decay_on_matrices_only(grad_clip: float | None) -> None:
    rng = np.random.default_rng(0)
    spec = spec_of(steps=5, warmup_steps=2, learning_rate=0.1, weight_decay=0.3, grad_clip=grad_clip)
    shapes = {"gain": (4,), "matrix": (4, 3), "scalar": (), "stack": (2, 4, 3)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    gradients = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(5)]

    optimizer = make_optimizer(spec)
    found = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    state = optimizer.init(found)

    @jax.jit
    def step(gradient: Any, state: Any, found: Any) -> Any:
        updates, state = optimizer.update(gradient, state, found)
        return optax.apply_updates(found, updates), state

    for gradient in gradients:
        found, state = step({name: np.float32(value) for name, value in gradient.items()}, state, found)

    for name, value in adamw(spec, params, gradients).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
