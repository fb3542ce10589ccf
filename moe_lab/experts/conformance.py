"""The conformance suite of shrinking strategies: what each keeps to, whoever wrote it. A contribution's test calls it:

    from moe_lab.experts.conformance import check_strategy
    from moe_lab.lab import find_lab

    def test_it_keeps_the_contract() -> None:
        check_strategy((lab := find_lab()).load(lab.get("distill", "mine")), temperature=2.0)

It is plain assertions, so any test runner will do; each says what was found and what the rule is.

Shape letters: B rows, S positions, V vocabulary, D model width, F hidden units, with those that fill up the last block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.config import Spec, decode
from moe_lab.experts.kinds import DEFAULT, find_kind
from moe_lab.experts.shrink import LayerStatistics, ShrinkStrategy
from moe_lab.experts.weights import ExpertWeights, permute
from moe_lab.nn.pool import from_blocks, to_blocks

WIDTHS = {1: 14, 3: 11}
"""Hidden units of the example's module in each routed layer; with a block of 4, units of padding follow them."""
_BLOCK, _D_MODEL = 4, 6
_KIND = find_kind(DEFAULT)
_SHAPE = 2, 5, 7  # rows, positions, vocabulary


class ShrinkExample(NamedTuple):
    """A module with what its units did on calibration text, and logits to learn from; all drawn at random."""

    statistics: dict[int, LayerStatistics]
    weights: ExpertWeights
    student_BSV: jax.Array
    teacher_BSV: jax.Array
    targets_BS: jax.Array
    mask_BS: jax.Array


def draw_shrink_example(seed: int) -> ShrinkExample:
    """The same seed gives the same numbers. Units of padding have zero weights and never answer."""
    rng = np.random.default_rng(seed)
    weights, statistics = {}, {}
    for layer, width in WIDTHS.items():
        shapes = (_D_MODEL, width), (_D_MODEL, width), (width, _D_MODEL)
        gate, up, down = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
        weights[layer] = to_blocks(gate, up, down, _BLOCK)
        padding = (0, weights[layer].num_blocks * _BLOCK - width)
        activation_TF = np.pad(rng.normal(size=(32, width)) * rng.uniform(0.2, 2.0, width), ((0, 0), padding))
        statistics[layer] = LayerStatistics(
            mean_abs_F=np.abs(activation_TF).mean(0),
            mean_square_F=np.square(activation_TF).mean(0),
            down_norm_F=_KIND.output_norms(weights[layer]),
        )
    rows, positions, vocabulary = _SHAPE
    student, teacher = (jnp.asarray(3 * rng.normal(size=_SHAPE), jnp.float32) for _ in range(2))
    targets = jnp.asarray(rng.integers(vocabulary, size=(rows, positions)), jnp.int32)
    mask = jnp.asarray(np.arange(positions) < [[positions - 1], [positions - 2]], jnp.float32)
    return ShrinkExample(statistics, weights, student, teacher, targets, mask)


def check_strategy(cls: type[ShrinkStrategy], /, **settings: Any) -> None:
    """Runs the whole suite on a shrinking strategy's class.

    Args:
        cls: the strategy.
        settings: its config, where the defaults will not do.

    Raises:
        AssertionError: what the strategy does, and the rule that it breaks.
    """
    bench = StrategyBench(cls, settings)
    for check in CHECKS:
        check(bench)


class StrategyBench:
    """A strategy and its loss, compiled as training compiles it."""

    def __init__(self, cls: type[ShrinkStrategy], settings: Mapping[str, Any]):
        self.name, self.cls, self.settings, self.traces = cls.__name__, cls, settings, 0
        self.strategy = cls(cls.Config(**settings))
        self.example = draw_shrink_example(0)

        def loss(student_BSV: jax.Array, *rest: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            self.traces += 1
            return self.strategy.loss(student_BSV, *rest)

        self._compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))

    @cached_property
    def scores(self) -> dict[int, np.ndarray]:
        return self.rank(self.example)

    def rank(self, example: ShrinkExample) -> dict[int, np.ndarray]:
        return self.strategy.importance(example.statistics, example.weights)

    def learn(self, example: ShrinkExample) -> tuple[Any, Mapping[str, Any], np.ndarray]:
        """The loss, the scalars it logs, and its gradient by the student's logits [B, S, V]."""
        (loss, metrics), gradient = self._compiled(*example[2:])
        return loss, metrics, np.asarray(gradient)


def config_survives_json(bench: StrategyBench) -> None:
    """The config is a Spec that reads back what it writes; a child's manifest keeps it."""
    config = bench.strategy.config
    assert isinstance(config, Spec), f"{bench.name}.Config is {bench.cls.Config}, must be a moe_lab.config.Spec"
    again = decode(bench.cls.Config, json.loads(config.model_dump_json()), bench.name)
    assert again == config, f"{bench.name}: {config} comes back from JSON as {again}"


def every_unit_has_a_score(bench: StrategyBench) -> None:
    """One finite score for each hidden unit of each routed layer, units of padding included."""
    assert set(bench.scores) == set(WIDTHS), (
        f"{bench.name}: importance scores layers {sorted(bench.scores)}, the module has {sorted(WIDTHS)}"
    )
    for layer, score in bench.scores.items():
        expected = bench.example.statistics[layer].mean_abs_F.shape
        assert np.shape(score) == expected, (
            f"{bench.name}: importance of layer {layer} has shape {np.shape(score)}, must be {expected}: one a unit"
        )
        assert np.isfinite(score).all(), f"{bench.name}: importance of layer {layer} is not finite everywhere"


def padding_comes_last(bench: StrategyBench) -> None:
    """A unit that only fills up the last block is never kept before one of the module's own."""
    for layer, score in bench.scores.items():
        own, padding = np.split(np.asarray(score), [WIDTHS[layer]])
        assert padding.max() <= own.min(), (
            f"{bench.name}: in layer {layer} a unit of padding scores {padding.max():.3g} and a unit of the module "
            f"{own.min():.3g}; units whose down_norm_F is 0 only fill up the last block and must score lowest"
        )


def importance_repeats(bench: StrategyBench) -> None:
    """The same statistics give the same scores, and what it is given stays as it was."""
    again = bench.rank(bench.example)
    for layer, score in bench.scores.items():
        assert np.array_equal(score, again[layer]), f"{bench.name}: two calls score layer {layer} differently"
    fresh = draw_shrink_example(0)
    for layer, statistics in fresh.statistics.items():
        for field in ("mean_abs_F", "mean_square_F", "down_norm_F"):
            kept = np.array_equal(getattr(statistics, field), getattr(bench.example.statistics[layer], field))
            assert kept, f"{bench.name}: importance changed {field} of layer {layer}; copy before you write"


def scores_follow_their_units(bench: StrategyBench) -> None:
    """In another order, every unit has the score that it had: the order of a module's units means nothing."""
    example, rng = bench.example, np.random.default_rng(1)
    order = {}
    for layer, width in WIDTHS.items():
        units = from_blocks(example.weights[layer])[0].shape[1]
        order[layer] = np.concatenate([rng.permutation(width), np.arange(width, units)])
    statistics = {
        layer: LayerStatistics(
            mean_abs_F=old.mean_abs_F[order[layer]],
            mean_square_F=old.mean_square_F[order[layer]],
            down_norm_F=old.down_norm_F[order[layer]],
        )
        for layer, old in example.statistics.items()
    }
    moved = bench.rank(example._replace(statistics=statistics, weights=permute(example.weights, order, _KIND)))
    for layer, score in bench.scores.items():
        np.testing.assert_allclose(
            moved[layer],
            np.asarray(score)[order[layer]],
            rtol=1e-4,
            atol=1e-6 * float(np.abs(score).max()),
            err_msg=f"{bench.name}: in another order the units of layer {layer} have other scores",
        )


def loss_is_one_finite_number(bench: StrategyBench) -> None:
    """A float32 scalar, and scalars to log; compiled, so it may read no value on the way."""
    try:
        loss, metrics = jax.eval_shape(bench.strategy.loss, *bench.example[2:])
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise AssertionError(f"{bench.name}.loss must be jittable, but it reads a value: {error}") from error
    assert loss.dtype == jnp.float32, f"{bench.name}: loss is {loss.dtype}, must be float32"
    for label, value in (("loss", loss), *metrics.items()):
        assert value.shape == (), f"{bench.name}: {label} has shape {value.shape}, must be one number"
    loss, metrics, _ = bench.learn(bench.example)
    for label, value in (("loss", loss), *metrics.items()):
        assert np.isfinite(value), f"{bench.name}: {label} is {value}"


def student_learns(bench: StrategyBench) -> None:
    """The gradient is finite, reaches every token of the mask and no other."""
    _, _, gradient_BSV = bench.learn(bench.example)
    assert np.isfinite(gradient_BSV).all(), f"{bench.name}: the gradient of loss is not finite"
    reached_BS, mask_BS = (gradient_BSV != 0).any(-1), np.asarray(bench.example.mask_BS) > 0
    assert reached_BS[mask_BS].all(), f"{bench.name}: loss gives some tokens of the mask no gradient"
    assert not reached_BS[~mask_BS].any(), f"{bench.name}: loss gives tokens outside the mask a gradient"


def tokens_outside_the_mask_do_not_count(bench: StrategyBench) -> None:
    """Whatever student and teacher say there; where nothing is in the mask, loss is finite."""
    example, other = bench.example, draw_shrink_example(1)
    inside_BS1 = example.mask_BS[..., None] > 0
    changed = example._replace(
        student_BSV=jnp.where(inside_BS1, example.student_BSV, other.student_BSV),
        teacher_BSV=jnp.where(inside_BS1, example.teacher_BSV, other.teacher_BSV),
        targets_BS=jnp.where(example.mask_BS > 0, example.targets_BS, other.targets_BS),
    )
    before, after = bench.learn(example)[0], bench.learn(changed)[0]
    assert before == after, f"{bench.name}: tokens outside the mask change loss from {before} to {after}"
    nothing = bench.learn(example._replace(mask_BS=jnp.zeros_like(example.mask_BS)))[0]
    assert np.isfinite(nothing), f"{bench.name}: loss of an empty mask is {nothing}, must be finite"


def loss_is_a_mean_over_tokens(bench: StrategyBench) -> None:
    """Every row twice has the loss of every row once, so that learning rates do not depend on the batch."""
    once = bench.learn(bench.example)[0]
    twice = bench.strategy.loss(*(jnp.concatenate([array, array]) for array in bench.example[2:]))[0]
    assert np.isclose(once, twice, rtol=1e-4), (
        f"{bench.name}: loss is {once}, with every row twice {twice}; average over the tokens of the mask"
    )


def other_numbers_compile_nothing(bench: StrategyBench) -> None:
    """Logits and targets of the same shapes run what was compiled once."""
    bench.learn(draw_shrink_example(2))
    assert bench.traces == 1, f"{bench.name}: loss was compiled {bench.traces} times for one shape"


CHECKS: tuple[Callable[[StrategyBench], None], ...] = (
    config_survives_json,
    every_unit_has_a_score,
    padding_comes_last,
    importance_repeats,
    scores_follow_their_units,
    loss_is_one_finite_number,
    student_learns,
    tokens_outside_the_mask_do_not_count,
    loss_is_a_mean_over_tokens,
    other_numbers_compile_nothing,
)
"""The suite, one rule a function."""
