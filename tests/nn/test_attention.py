"""Attention of whole rows through XLA and compiled: one definition, and what only the compiled form promises."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.nn.attention import whole_rows
from moe_lab.nn.backends import native
from moe_lab.nn.backends.native import check
from moe_lab.nn.decoder import Trunk
from moe_lab.nn.kernels.attention import Scoring
from moe_lab.nn.layout import ONE_DEVICE, Layout
from moe_lab.nn.rope import rotary_tables, rotate
from moe_lab.nn.spec import RopeSpec, TrunkSpec
from tests.nn import oracle
from tests.nn.drawing import NATIVE, InParts
from tests.nn.test_layers import normal, packed

(compiled,) = NATIVE.marks

ROWS, LENGTH, HEADS, GROUPS, WIDTH, TURNED = 2, 157, 6, 2, 20, 12
SCORINGS = [Scoring(0.4), Scoring(0.2, 3.0), Scoring(0.4, None, 30), Scoring(0.2, 3.0, 1)]


WAYS = [pytest.param(InParts(), id="xla"), pytest.param(ONE_DEVICE, id="compiled", marks=compiled)]
Inputs = tuple[np.ndarray, ...]


def draw(seed: int = 0) -> tuple[Inputs, np.ndarray, tuple[jax.Array, jax.Array]]:
    """Queries, keys and values, the documents, sines and cosines."""
    rng = np.random.default_rng(seed)
    segments, positions = packed(rng, ROWS, LENGTH, 3)
    heads = tuple(normal(rng, ROWS, LENGTH, count, WIDTH) for count in (HEADS, GROUPS, GROUPS))
    return heads, segments, rotary_tables(jnp.asarray(positions), RopeSpec(base=100.0), TURNED)


def program(scoring: Scoring, layout: Layout) -> Callable[..., jax.Array]:
    return jax.jit(lambda heads, segments, turns: whole_rows(*heads, segments, turns, scoring, layout))


@pytest.mark.slow
@pytest.mark.parametrize("layout", WAYS)
@pytest.mark.parametrize("scoring", SCORINGS)
def test_heads_of_a_group_meet_the_turned_keys_of_their_documents(layout: Layout, scoring: Scoring) -> None:
    heads, segments, turns = draw()
    got = program(scoring, layout)(heads, segments, turns)
    q, k = (np.asarray(rotate(jnp.asarray(t), *turns), np.float64) for t in heads[:2])
    for row, head in np.ndindex(ROWS, HEADS):
        group = head // (HEADS // GROUPS)
        own = q[row, :, head], k[row, :, group], heads[2][row, :, group]
        expected = oracle.attend(*own, segments[row], *scoring)
        np.testing.assert_allclose(got[row, :, head], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("scoring", [SCORINGS[0], pytest.param(SCORINGS[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("turned", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_gradients_are_those_that_xla_makes(scoring: Scoring, turned: bool) -> None:
    heads, segments, turns = draw(1)
    dy = normal(np.random.default_rng(2), *heads[0].shape)

    def gradients(layout: Layout, heads: Inputs) -> tuple:
        run = partial(whole_rows, scoring=scoring, layout=layout)
        return jax.vjp(lambda *heads: run(*heads, segments, turns if turned else None), *heads)[1](dy)

    expected, got = (jax.jit(partial(gradients, layout))(heads) for layout in (InParts(), ONE_DEVICE))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


@compiled
def test_a_document_s_bits_depend_neither_on_other_rows_nor_on_where_it_stands() -> None:
    heads, segments, turns = draw()
    run = program(SCORINGS[0], ONE_DEVICE)
    together = np.asarray(run(heads, segments, turns))
    row = [t[:1] for t in (*heads, segments, *turns)]
    np.testing.assert_array_equal(run(tuple(row[:3]), row[3], tuple(row[4:]))[0], together[0])
    where = np.flatnonzero(segments[0] == 2)
    document = [t[:, where] for t in row]
    alone = run(tuple(document[:3]), document[3], tuple(document[4:]))
    np.testing.assert_array_equal(alone[0], together[0, where])


@compiled
@pytest.mark.slow
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, segments, turns = draw()

    def both(heads: Inputs) -> tuple:
        out, pull_back = jax.vjp(lambda *heads: whole_rows(*heads, segments, turns, SCORINGS[1], ONE_DEVICE), *heads)
        return out, pull_back(out)

    expected = jax.jit(lambda heads: both(heads))(heads)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda heads: both(heads))(heads), expected)


@pytest.mark.slow
def test_what_the_kernel_does_not_know_goes_through_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "float32, not bfloat16" in str(native.obstacle_here(jnp.dtype("bfloat16")))
    spec = TrunkSpec(d_model=8, num_layers=1, num_heads=2, ffn_width=8, vocab_size=5, routed_layers=(0,))
    trunk = Trunk(spec, rngs=nnx.Rngs(0))
    tokens = np.arange(12, dtype=np.int32)[None] % 5

    def logits() -> tuple[str, jax.Array]:
        traced = jax.jit(lambda: trunk(tokens, np.ones_like(tokens), tokens)).lower()
        return traced.as_text(), traced.compile()()

    here, there = check.obstacle() is None, logits()
    assert ("moe_lab_attention" in there[0]) == here
    monkeypatch.setattr(check, "obstacle", lambda: "there is no compiler")
    text, expected = logits()
    assert "moe_lab_attention" not in text
    np.testing.assert_allclose(there[1], expected, rtol=1e-4, atol=1e-5)
