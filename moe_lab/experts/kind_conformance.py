"""What every kind of expert keeps to: the guarantees of a routed layer, checked on a kind alone.

`check_kind(kind)` runs all checks; a kind's own test calls it. Each check is a function of its own, so that a failure
says which rule was broken.

Shape letters: T tokens, K choices per token, N blocks, D model width, F units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.experts.kind import ExpertKind
from moe_lab.nn.pool import Routing, make_pool

_TOKENS, _D_MODEL, _BLOCK, _ACTIVATION = 7, 12, 4, "silu"
_RTOL, _ATOL = 1e-4, 1e-5


class KindBench:
    """A kind with weights and tokens to try it on."""

    def __init__(self, kind: ExpertKind):
        self.kind = kind
        self.h_TD = jnp.asarray(np.random.default_rng(0).normal(size=(_TOKENS, _D_MODEL)), jnp.float32)

    def fresh(self, width: int) -> Any:
        return self.kind.init(jax.random.key(width), _D_MODEL, width, _BLOCK)

    def drawn(self, width: int) -> Any:
        """Weights that add something: those of units that fill up the last block stay zero."""
        fresh, rng = self.fresh(width), np.random.default_rng(width)
        noisy = self.kind.from_parts([jnp.asarray(rng.normal(size=w.shape) / 4, w.dtype) for w in fresh])
        return self.kind.cut(noisy, width)

    def run(self, weights: Any, blocks: int, *others: Any, place: int = 0) -> np.ndarray:
        """All tokens run that many blocks of module `place` of a pool that holds it and others."""
        modules = [*others[:place], weights, *others[place:]]
        expert = jnp.full((_TOKENS, 1), place, jnp.int32)
        routing = Routing(expert, jnp.full((_TOKENS, 1), blocks, jnp.int32), jnp.ones((_TOKENS, 1), jnp.float32))
        return np.asarray(self.kind.run(self.h_TD, make_pool(modules), routing, activation=_ACTIVATION))


def a_fresh_module_adds_nothing_and_can_learn(bench: KindBench) -> None:
    """Step 0 of a training is exactly the trunk, and not a place where no gradient flows."""
    fresh = bench.fresh(8)
    assert not bench.run(fresh, 2).any(), f"{bench.kind.name}: fresh weights change the output"

    def loss(parts: tuple[jax.Array, ...]) -> jax.Array:
        routing = Routing(*(jnp.full((_TOKENS, 1), value) for value in (0, 2, 1.0)))
        pool = make_pool([bench.kind.from_parts(parts)])
        return bench.kind.run(bench.h_TD, pool, routing, activation=_ACTIVATION).sum()

    gradients = jax.grad(loss)(tuple(fresh))
    assert any(np.asarray(gradient).any() for gradient in gradients), f"{bench.kind.name}: no gradient at step 0"


def shapes_and_costs_are_those_of_the_arrays(bench: KindBench) -> None:
    kind, weights = bench.kind, bench.drawn(10)
    shapes = {part: tuple(w.shape) for part, w in zip(kind.parts, weights, strict=True)}
    assert shapes == kind.shapes(3, _D_MODEL, _BLOCK), f"{kind.name}: arrays are {shapes}"
    assert kind.count_blocks(shapes) == weights.num_blocks == 3
    stored = sum(math.prod(shape) for shape in shapes.values())
    assert stored == 3 * kind.block_parameters(_D_MODEL, _BLOCK)
    cost = kind.cost(_D_MODEL, _BLOCK)
    assert cost.multiply_adds >= 0
    assert cost.bytes_looked_up >= 0
    assert sum(cost) > 0, f"{kind.name}: a block that costs nothing"


def parts_make_the_same_weights(bench: KindBench) -> None:
    weights = bench.drawn(8)
    again = bench.kind.from_parts(list(weights))
    assert type(again) is type(weights)
    for part, one, other in zip(bench.kind.parts, weights, again, strict=True):
        assert np.array_equal(one, other), f"{bench.kind.name}: {part} comes back changed"


def a_narrower_width_is_a_prefix(bench: KindBench) -> None:
    """Running w blocks equals the child of w blocks, bit for bit; the full width equals the original."""
    weights = bench.drawn(12)
    for blocks in (1, 2, 3):
        child = bench.kind.cut(weights, blocks * _BLOCK)
        same = np.array_equal(bench.run(weights, blocks), bench.run(child, blocks))
        assert same, f"{bench.kind.name}: {blocks} blocks are not the prefix"


def blocks_add_up(bench: KindBench) -> None:
    """Each block adds a term of its own, which is what lets blocks lie on several devices."""
    weights = bench.drawn(12)
    one_by_one = sum(bench.run(bench.kind.from_parts([w[block : block + 1] for w in weights]), 1) for block in range(3))
    np.testing.assert_allclose(bench.run(weights, 3), one_by_one, rtol=_RTOL, atol=_ATOL)


def the_order_of_units_does_not_matter(bench: KindBench) -> None:
    weights = bench.drawn(12)
    order = np.random.default_rng(1).permutation(len(bench.kind.output_norms(weights)))
    np.testing.assert_allclose(
        bench.run(bench.kind.permute(weights, order), 3), bench.run(weights, 3), rtol=_RTOL, atol=_ATOL
    )
    back = bench.kind.permute(bench.kind.permute(weights, order), np.argsort(order))
    for part, one, other in zip(bench.kind.parts, weights, back, strict=True):
        assert np.array_equal(one, other), f"{bench.kind.name}: {part} does not come back from a permutation"


def other_modules_change_no_bit(bench: KindBench) -> None:
    """Neutral insertion and exact opt-out: a pool with more modules, none of them asked for."""
    weights, other = bench.drawn(8), bench.drawn(16)
    alone = bench.run(weights, 2)
    assert np.array_equal(alone, bench.run(weights, 2, other)), f"{bench.kind.name}: a later module changes the output"
    assert np.array_equal(alone, bench.run(weights, 2, other, place=1)), f"{bench.kind.name}: an earlier one does"
    assert not bench.run(weights, 0).any(), f"{bench.kind.name}: width 0 adds something"


def padding_adds_nothing(bench: KindBench) -> None:
    """A width that is no whole number of blocks: what fills up the last one is never seen."""
    weights = bench.drawn(10)
    norms, answers = bench.kind.output_norms(weights), bench.kind.activations(bench.h_TD, weights, _ACTIVATION)
    assert norms.shape == (12,)
    assert answers.shape == (_TOKENS, 12)
    assert not norms[10:].any(), f"{bench.kind.name}: units that fill up a block have weights"
    wider = bench.kind.cut(weights, 12)
    assert np.array_equal(bench.run(weights, 3), bench.run(wider, 3))


CHECKS: tuple[Callable[[KindBench], None], ...] = (
    a_fresh_module_adds_nothing_and_can_learn,
    shapes_and_costs_are_those_of_the_arrays,
    parts_make_the_same_weights,
    a_narrower_width_is_a_prefix,
    blocks_add_up,
    the_order_of_units_does_not_matter,
    other_modules_change_no_bit,
    padding_adds_nothing,
)


def check_kind(kind: ExpertKind) -> None:
    """Runs the whole suite on a kind.

    Raises:
        AssertionError: what the kind does, and the rule that it breaks.
    """
    bench = KindBench(kind)
    for check in CHECKS:
        check(bench)
