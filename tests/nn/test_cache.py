"""What a cache promises: a row read in any chunks, beside any other rows, is the row read whole."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.nn.cache import Cache, make_cache
from moe_lab.nn.decoder import Experts, Trunk
from moe_lab.nn.expert_ffn import OneDevice
from moe_lab.nn.pool import Routing, make_pool
from moe_lab.nn.spec import TrunkSpec
from tests.nn import oracle
from tests.nn.drawing import random_blocks

ROWS, LENGTH, CHUNK = 3, 24, 6
SPEC = TrunkSpec(
    vocab_size=11,
    d_model=8,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    ffn_width=10,
    block=4,
    routed_layers=(1,),
    sliding_layers=(0, 1),
    sliding_window=5,
    attention_softcap=4.0,
)


class Whole:
    """Rows of two documents each, and what the trunk with a module says of them in one pass."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        graph, self.state = oracle.randomised(lambda: Trunk(SPEC, rngs=nnx.Rngs(0)))
        self.tokens = rng.integers(0, 11, (ROWS, LENGTH)).astype(np.int32)
        place = np.arange(LENGTH)
        first = np.array([7, 13, 24])[:, None]
        self.segments = np.where(place < first, 1, 2).astype(np.int32)
        self.positions = np.where(place < first, place, place - first).astype(np.int32)
        pools = {1: make_pool([random_blocks(rng, 2, d_model=8)])}

        @jax.jit
        def read(state: Any, tokens: Any, segments: Any, positions: Any, cache: Cache | None) -> tuple:
            shape = (*tokens.shape, 1)
            routing = Routing(jnp.zeros(shape, jnp.int32), jnp.ones(shape, jnp.int32), jnp.ones(shape, jnp.float32))
            trunk = nnx.merge(graph, state)
            experts = Experts(pools, routing, OneDevice(backend="reference"))
            output = trunk.forward(tokens, segments, positions, experts, cache)
            return trunk.head(output.hidden_BSD), output.cache

        self.read = read
        self.logits = np.asarray(read(self.state, self.tokens, self.segments, self.positions, None)[0])


@pytest.fixture(scope="module")
def whole() -> Whole:
    return Whole()


def read_in_chunks(whole: Whole, takes: list[list[int]], width: int) -> tuple[np.ndarray, Cache]:
    """Logits of every token, from chunks of which each row takes as many tokens as `takes` says."""
    cache, at = make_cache(SPEC, ROWS, LENGTH), np.zeros(ROWS, int)
    logits = np.full_like(whole.logits, np.nan)
    for take in takes:
        chunk = np.zeros((3, ROWS, width), np.int32)
        for row, count in enumerate(take):
            part = slice(at[row], at[row] + count)
            for kind, source in enumerate((whole.tokens, whole.segments, whole.positions)):
                chunk[kind, row, :count] = source[row, part]
        found, cache = whole.read(whole.state, *chunk, cache)
        for row, count in enumerate(take):
            logits[row, at[row] : at[row] + count] = found[row, :count]
            at[row] += count
    np.testing.assert_array_equal(cache.length_B, at)
    return logits, cache


@st.composite
def ragged(draw: st.DrawFn) -> list[list[int]]:
    """Takes of up to CHUNK tokens a row, until every row is through."""
    takes, at = [], np.zeros(ROWS, int)
    while (at < LENGTH).any():
        take = [min(draw(st.integers(0, CHUNK)), LENGTH - done) for done in at]
        takes.append(take if any(take) else [min(1, LENGTH - done) for done in at])
        at += takes[-1]
    return takes


@pytest.mark.slow
@given(takes=ragged())
@settings(max_examples=15)
def test_rows_read_in_ragged_chunks_are_the_rows_read_whole(whole: Whole, takes: list[list[int]]) -> None:
    logits, _ = read_in_chunks(whole, takes, CHUNK)
    np.testing.assert_allclose(logits, whole.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_token_by_token_is_the_row_read_whole(whole: Whole) -> None:
    logits, cache = read_in_chunks(whole, [[1] * ROWS] * LENGTH, 1)
    np.testing.assert_allclose(logits, whole.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cache.segment_ids_BC, whole.segments)


@pytest.mark.slow
def test_a_row_s_bits_do_not_depend_on_how_far_the_others_are(whole: Whole) -> None:
    alone = [[1, 0, 0]] * LENGTH
    beside = [[1, 1, min(1, step % 2)] for step in range(LENGTH)]
    first, second = (read_in_chunks(whole, takes, 1)[0][0] for takes in (alone, beside))
    np.testing.assert_array_equal(first, second)


def test_a_sliding_layer_keeps_its_window_only() -> None:
    cache = make_cache(SPEC, ROWS, LENGTH)
    assert [layer.slots for layer in cache.layers] == [5, 5, LENGTH]
    assert cache.capacity == LENGTH
    assert [layer.slots for layer in make_cache(SPEC, 1, 3).layers] == [3, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, ROWS])
def test_a_step_writes_into_the_cache_that_it_was_given(rows: int) -> None:
    graph, state = nnx.split(Trunk(SPEC, rngs=nnx.Rngs(0)))

    def step(cache: Cache, tokens: jax.Array) -> tuple[Cache, jax.Array]:
        output = nnx.merge(graph, state).forward(tokens, jnp.ones_like(tokens), cache.length_B[:, None], None, cache)
        assert output.cache is not None
        return output.cache, output.hidden_BSD

    cache = make_cache(SPEC, rows, LENGTH)
    program = jax.jit(step, donate_argnums=0).lower(cache, jnp.ones((rows, 1), jnp.int32)).compile().as_text()
    for layer in cache.layers:
        made = rf"f32\[{','.join(map(str, layer.key_BGCA.shape))}\]\S* (\w+)\("
        assert "copy" not in re.findall(made, program), "XLA copies the cache in every step"


@pytest.mark.slow
def test_the_newest_tokens_may_be_taken_back_where_there_is_room_for_it(whole: Whole) -> None:
    """Six tokens of another text are read and taken back, again and again, by rows that slide over five."""
    cache = make_cache(SPEC, ROWS, LENGTH, takes_back=CHUNK)
    assert [layer.slots for layer in cache.layers] == [5 + CHUNK, 5 + CHUNK, LENGTH]
    logits, other = [], np.full((ROWS, CHUNK), 3, np.int32)
    for at in range(0, LENGTH - CHUNK, 2):
        ones, places = np.ones_like(other), np.broadcast_to(np.arange(CHUNK, dtype=np.int32), other.shape)
        _, wrong = whole.read(whole.state, other, ones, places, cache)
        cache = wrong._replace(length_B=wrong.length_B - CHUNK)
        part = (slice(None), slice(at, at + 2))
        found, cache = whole.read(whole.state, whole.tokens[part], whole.segments[part], whole.positions[part], cache)
        logits.append(found)
    got = np.concatenate(logits, axis=1)
    np.testing.assert_allclose(got, whole.logits[:, : got.shape[1]], rtol=1e-4, atol=1e-5)
