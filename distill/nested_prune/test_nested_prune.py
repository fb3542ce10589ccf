"""What the strategy keeps, and what the smaller module learns from text and teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab import LayerStatistics, ShrinkStrategy, find_lab
from moe_lab.testing import check_strategy, order_by_importance

lab = find_lab()
NestedPrune = lab.load(lab.get("distill", "nested_prune"))
MASK = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def strategy(**settings: float) -> ShrinkStrategy:
    return NestedPrune(NestedPrune.Config(**settings))


def draw(seed: int) -> jax.Array:
    """Logits [2, 3, 5]."""
    return jnp.asarray(3 * np.random.default_rng(seed).normal(size=(2, 3, 5)), jnp.float32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("settings", [{}, {"teacher_share": 1.0, "temperature": 3.0}])
def test_it_keeps_the_contract(settings: dict[str, float]) -> None:
    check_strategy(NestedPrune, **settings)


def test_importance_is_what_a_unit_adds_to_the_residual_stream() -> None:
    statistics = {
        layer: LayerStatistics(
            mean_abs_F=np.array([1.0, 0.5, 2.0]),
            mean_square_F=np.array([100.0, 0.0, 0.0]),
            down_norm_F=np.array(norms),
        )
        for layer, norms in {1: [1.0, 8.0, 1.5], 4: [0.0, 0.0, 1.0]}.items()
    }
    scores = strategy().importance(statistics, {})
    np.testing.assert_allclose(scores[1], [1.0, 4.0, 3.0])
    np.testing.assert_allclose(scores[4], [0.0, 0.0, 2.0])
    assert order_by_importance(scores)[1].tolist() == [1, 2, 0]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_student_that_is_its_teacher_learns_nothing_from_it(temperature: float) -> None:
    only_teacher, targets = strategy(teacher_share=1.0, temperature=temperature), jnp.zeros((2, 3), jnp.int32)

    def loss_of(student: jax.Array) -> jax.Array:
        return only_teacher.loss(student, draw(0), targets, MASK)[0]

    # Logits shifted together say the same.
    loss, gradient = jax.value_and_grad(loss_of)(draw(0) + 7.0)
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
    assert loss_of(draw(1)) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_loss_is_hinton_s(temperature: float, share: float) -> None:
    student, teacher = draw(0), draw(1)
    targets = jnp.array([[0, 3, 4], [2, 1, 0]])
    loss, metrics = strategy(teacher_share=share, temperature=temperature).loss(student, teacher, targets, MASK)
    text, divergence = [], []
    for row, place in np.argwhere(np.asarray(MASK) > 0):
        s, t = (np.asarray(logits[row, place], np.float64) for logits in (student, teacher))
        text.append(-log_softmax(s)[int(targets[row, place])])
        soft_s, soft_t = log_softmax(s / temperature), log_softmax(t / temperature)
        divergence.append(temperature**2 * (np.exp(soft_t) * (soft_t - soft_s)).sum())
    np.testing.assert_allclose(metrics["text_loss"], np.mean(text), rtol=1e-4)
    np.testing.assert_allclose(metrics["teacher_divergence"], np.mean(divergence), rtol=1e-4)
    np.testing.assert_allclose(loss, (1 - share) * np.mean(text) + share * np.mean(divergence), rtol=1e-4)


@pytest.mark.slow
def test_the_pull_of_the_teacher_keeps_its_size_at_high_temperature() -> None:
    # T^2 undoes the 1/T^2 by which softened gradients shrink: the limit is (student - teacher) / V, logits centred.
    student, teacher = 0.1 * draw(0), 0.1 * draw(1)
    hot = strategy(teacher_share=1.0, temperature=100.0)
    gradient = jax.grad(lambda s: hot.loss(s, teacher, jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3)))[0])(student)
    centred = (student - teacher) - (student - teacher).mean(-1, keepdims=True)
    np.testing.assert_allclose(gradient, centred / 5 / 6, rtol=0.02, atol=1e-4)


def test_tokens_outside_the_mask_do_not_count() -> None:
    targets, other = jnp.zeros((2, 3), jnp.int32), jnp.where(MASK[..., None] > 0, draw(0), draw(5))
    first, second = (strategy().loss(student, draw(1), targets, MASK)[0] for student in (draw(0), other))
    assert first == second
    nothing, _ = strategy().loss(draw(0), draw(1), targets, jnp.zeros((2, 3)))
    assert nothing == 0.0
