"""The guarantees of the routed layer, for every exact backend, over random widths, routings and masks.

1 neutral insertion, 2 exact opt-out, 3 prefix, 4 padding and permutation, 5 isolation. Causality and the absence of
silent drops are properties of routers and composed models: see tests/routing and tests/compose.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.experts.kinds.gated_ffn import KIND
from moe_lab.experts.weights import permute
from moe_lab.nn.expert_ffn import expert_ffn
from moe_lab.nn.pool import Blocks, Pool, Routing, from_blocks, make_pool, to_blocks
from tests.nn.drawing import (
    BLOCK,
    EXACT,
    choices_and_counts,
    ffn_gradients,
    random_blocks,
    random_routing,
    random_tokens,
    run_ffn,
    seeds,
    tokens,
)

pytestmark = pytest.mark.slow

every_backend = pytest.mark.parametrize("backend", EXACT)


def equal_bits(a: jax.Array, b: jax.Array) -> None:
    """Bit for bit, so that -0.0 and 0.0 differ."""
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


def run(h, modules, routing, backend):  # type: ignore[no-untyped-def]
    return run_ffn(h, make_pool(modules), routing, backend=backend)


@every_backend
@given(seed=seeds, tokens=tokens, drawn=choices_and_counts, place=st.sampled_from((0, 1, 9)), broken=st.booleans())
@settings(max_examples=10)
def test_1_adding_a_module_that_no_token_uses_changes_no_bit(backend, seed, tokens, drawn, place, broken) -> None:
    rng, (top_k, counts) = np.random.default_rng(seed), drawn
    h, modules = random_tokens(rng, tokens), [random_blocks(rng, count) for count in counts]
    routing = random_routing(rng, tokens, top_k, counts)
    place = min(place, len(modules))
    added = random_blocks(rng, 3)
    if broken:  # even NaN weights stay where they are
        added = jax.tree.map(lambda w: w * jnp.nan, added)
    after = routing._replace(expert=jnp.where(routing.expert >= place, routing.expert + 1, routing.expert))
    longer = [*modules[:place], added, *modules[place:]]
    equal_bits(run(h, longer, after, backend), run(h, modules, routing, backend))


@every_backend
@given(seed=seeds, tokens=tokens, drawn=choices_and_counts.filter(lambda d: len(d[1]) > 1))
@settings(max_examples=10)
def test_2_masking_a_module_equals_composing_without_it(backend, seed, tokens, drawn) -> None:
    rng, (top_k, counts) = np.random.default_rng(seed), drawn
    h, modules = random_tokens(rng, tokens), [random_blocks(rng, count) for count in counts]
    routing = random_routing(rng, tokens, top_k, counts)
    out = 1
    masked = routing._replace(width=jnp.where(routing.expert == out, 0, routing.width))
    shorter = modules[:out] + modules[out + 1 :]
    renumbered = jnp.where(routing.expert > out, routing.expert - 1, routing.expert)
    composed_without = Routing(jnp.minimum(renumbered, len(shorter) - 1), masked.width, masked.weight)
    equal_bits(run(h, modules, masked, backend), run(h, shorter, composed_without, backend))


@every_backend
@given(seed=seeds, tokens=tokens, drawn=choices_and_counts)
@settings(max_examples=10)
def test_3_running_a_width_equals_the_stored_child_of_that_width(backend, seed, tokens, drawn) -> None:
    rng, (top_k, counts) = np.random.default_rng(seed), drawn
    h, modules = random_tokens(rng, tokens), [random_blocks(rng, count) for count in counts]
    routing = random_routing(rng, tokens, top_k, counts)
    rung = np.array([count - count // 2 for count in counts])
    narrowed = routing._replace(width=jnp.minimum(routing.width, jnp.asarray(rung)[routing.expert]))
    children = [Blocks(*(part[:width] for part in module)) for module, width in zip(modules, rung, strict=True)]
    full = routing._replace(width=jnp.where(routing.width > 0, 99, 0))
    equal_bits(run(h, modules, narrowed, backend), run(h, children, narrowed, backend))
    equal_bits(
        run(h, modules, full, backend),
        run(h, modules, full._replace(width=jnp.where(full.width > 0, jnp.asarray(counts)[full.expert], 0)), backend),
    )


@every_backend
@given(seed=seeds, size=st.sampled_from(((1, 0), (1, 9), (6, 3), (11, 0), (11, 1))))  # one block, or three
@settings(max_examples=10)
def test_4_padding_and_permuting_hidden_units_change_only_rounding(backend, seed, size) -> None:
    rng, (width, more) = np.random.default_rng(seed), size
    gate, up, down = (
        jnp.asarray(rng.normal(size=shape) * 0.3, jnp.float32) for shape in ((12, width), (12, width), (width, 12))
    )
    h = random_tokens(rng, 7)
    full = Routing(jnp.zeros((7, 1), jnp.int32), jnp.full((7, 1), 99, jnp.int32), jnp.ones((7, 1)))
    plain = (jax.nn.silu(h @ gate) * (h @ up)) @ down
    padded = to_blocks(
        *(jnp.pad(w, ((0, 0), (0, more))) for w in (gate, up)), jnp.pad(down, ((0, more), (0, 0))), BLOCK
    )
    np.testing.assert_allclose(run(h, [padded], full, backend), plain, rtol=1e-4, atol=1e-5)
    units = from_blocks(padded)[0].shape[1]
    shuffled = permute({0: padded}, {0: rng.permutation(units)}, KIND)[0]
    np.testing.assert_allclose(run(h, [shuffled], full, backend), plain, rtol=1e-4, atol=1e-5)


@every_backend
@given(seed=seeds, drawn=choices_and_counts.filter(lambda d: len(d[1]) > 1))
@settings(max_examples=10)
def test_5_training_one_module_gives_no_other_module_a_gradient(backend, seed, drawn) -> None:
    rng, (_, counts) = np.random.default_rng(seed), drawn
    h, modules = random_tokens(rng, 7), [random_blocks(rng, count) for count in counts]
    routing = random_routing(rng, 7, 1, counts)
    only = int(rng.integers(len(counts)))
    routing = routing._replace(expert=jnp.full_like(routing.expert, only))
    pool = make_pool(modules)

    gradient = ffn_gradients(h, pool, routing, backend)[1]
    owned = slice(int(pool.start[only]), int(pool.start[only]) + counts[only])
    for part in gradient:
        assert not np.delete(np.asarray(part), owned, axis=0).any()


@every_backend
def test_zero_padding_stays_zero_in_training(backend: str) -> None:
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((12, 6), (12, 6), (6, 12))]
    blocks, h = to_blocks(*parts, BLOCK), random_tokens(rng, 7)
    pool = make_pool([blocks])
    routing = Routing(jnp.zeros((7, 1), jnp.int32), jnp.full((7, 1), 2, jnp.int32), jnp.ones((7, 1)))
    gradient = jax.jit(
        jax.grad(lambda b: expert_ffn(h, Pool(b, pool.start, pool.count), routing, backend=backend).sum())
    )
    gate, up, down = from_blocks(gradient(blocks))
    for unused in (gate[:, 6:], up[:, 6:], down[6:]):
        assert not np.asarray(unused).any()
    assert np.asarray(down)[:6].any()
