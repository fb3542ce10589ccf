"""Every backend against a loop over tokens, and every gradient against every other backend's."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from moe_lab.errors import LabError
from moe_lab.nn.backends import BACKENDS
from moe_lab.nn.expert_ffn import choose_backend, expert_ffn, routed_blocks
from moe_lab.nn.kernels import sorting
from moe_lab.nn.pool import Pool, Routing, from_blocks, make_pool, to_blocks
from tests.nn.drawing import (
    BESIDE_REFERENCE,
    EXACT,
    NATIVE,
    choices_and_counts,
    ffn_gradients,
    random_blocks,
    random_pool,
    random_routing,
    random_tokens,
    run_ffn,
    seeds,
    tokens,
)

pytestmark = pytest.mark.slow

BUDGETED = [("capacity", 1), ("megablox-interpreted", 1)]
"""With room for every block row of every assignment, so that nothing is left out."""


def token_by_token(h: np.ndarray, pool: Pool, routing: Routing, activation: str) -> np.ndarray:
    """The definition in numpy, float64, without any array trick."""
    act = {"silu": lambda x: x / (1 + np.exp(-x)), "gelu": lambda x: np.asarray(jax.nn.gelu(x))}[activation]
    gate, up, down = (np.asarray(w, np.float64) for w in pool.blocks)
    out = np.zeros(h.shape)
    for t in range(h.shape[0]):
        for k in range(routing.expert.shape[1]):
            expert = int(routing.expert[t, k])
            for j in range(min(int(routing.width[t, k]), int(pool.count[expert]))):
                n = int(pool.start[expert]) + j
                hidden = act(h[t] @ gate[n]) * (h[t] @ up[n])
                out[t] += float(routing.weight[t, k]) * (hidden @ down[n])
    return out


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
@given(seed=seeds, tokens=tokens, drawn=choices_and_counts)
@settings(max_examples=10)
def test_it_computes_the_definition(backend, activation, seed, tokens, drawn) -> None:
    rng, (top_k, counts) = np.random.default_rng(seed), drawn
    pool, h = random_pool(rng, counts), random_tokens(rng, tokens)
    routing = random_routing(rng, tokens, top_k, counts)
    got = run_ffn(h, pool, routing, activation=activation, backend=backend)
    expected = token_by_token(np.asarray(h, np.float64), pool, routing, activation)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def assert_same_but_for_rounding(got: jax.Array, expected: jax.Array, *, least: float) -> None:
    """The rounding of a sum of hundreds goes with its largest terms, and with the order that a processor sums in."""
    tolerance = max(least, 5e-6 * float(jnp.abs(expected).max(initial=0)))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=tolerance)


@pytest.mark.parametrize(
    ("backend", "room"),
    [*(pytest.param(*exact.values, None, marks=exact.marks) for exact in BESIDE_REFERENCE), *BUDGETED],
)
@given(seed=seeds, tokens=tokens, drawn=choices_and_counts)
@settings(max_examples=10)
def test_gradients_are_those_of_the_reference(backend, room, seed, tokens, drawn) -> None:
    rng, (top_k, counts) = np.random.default_rng(seed), drawn
    pool, h = random_pool(rng, counts), random_tokens(rng, tokens)
    routing = random_routing(rng, tokens, top_k, counts)
    expected = ffn_gradients(h, pool, routing, "reference")
    got = ffn_gradients(h, pool, routing, backend, room and room * tokens * top_k * sum(counts))
    jax.tree.map(partial(assert_same_but_for_rounding, least=2e-5), got, expected)


@pytest.mark.parametrize("backend", BESIDE_REFERENCE)
@pytest.mark.parametrize("tokens", [1, 33, 301])
def test_wide_modules_and_odd_numbers_of_tokens(backend: str, tokens: int) -> None:
    """Slabs of every size, tiles of every size, an empty module, a module that is not used."""
    rng, counts, top_k = np.random.default_rng(tokens), [21, 16, 5, 3], 1 if tokens == 33 else 2
    pool, h = random_pool(rng, counts), random_tokens(rng, tokens)
    routing = random_routing(rng, tokens, top_k, counts)
    routing = routing._replace(expert=jnp.where(routing.expert == 2, 0, routing.expert))
    expected, got = (ffn_gradients(h, pool, routing, name) for name in ("reference", backend))
    jax.tree.map(partial(assert_same_but_for_rounding, least=1e-4), got, expected)


@pytest.mark.parametrize("backend", BESIDE_REFERENCE)
def test_a_padded_pool_leaves_its_spare_blocks_alone(backend: str) -> None:
    rng = np.random.default_rng(9)
    pool, h, routing = random_pool(rng, [2, 3]), random_tokens(rng, 40), random_routing(rng, 40, 2, [2, 3])
    spare = jax.tree.map(lambda w: jnp.pad(w, ((0, 3), (0, 0), (0, 0)), constant_values=jnp.nan), pool.blocks)
    whole, padded = (ffn_gradients(h, p, routing, backend) for p in (pool, Pool(spare, pool.start, pool.count)))
    np.testing.assert_array_equal(padded[0], whole[0])
    np.testing.assert_array_equal(padded[1].gate[:5], whole[1].gate)
    assert not np.asarray(padded[1].gate[5:]).any()


def test_keys_too_large_for_one_word_sort_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    pool, routing = random_pool(rng, [2, 5, 1]), random_routing(rng, 40, 2, [2, 5, 1])
    packed = sorting.sort_assignments(pool, routing)
    monkeypatch.setattr(sorting, "WORD", 1)
    jax.tree.map(np.testing.assert_array_equal, sorting.sort_assignments(pool, routing), packed)


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize(
    ("experts", "widths"),
    [
        ([[0, 0]] * 40, [[3, 1]] * 40),  # the same module twice for one token
        ([[1, 0]] * 40, [[0, 0]] * 40),  # everything to width 0
        ([[2, 2]] * 40, [[9, 9]] * 40),  # one hot module, wider than it is
    ],
)
def test_lopsided_routings(backend: str, experts: list, widths: list) -> None:
    rng = np.random.default_rng(0)
    pool, h = random_pool(rng, [3, 1, 2]), random_tokens(rng, 40)
    weight = jnp.asarray(rng.normal(size=(40, 2)), jnp.float32)
    routing = Routing(jnp.asarray(experts, jnp.int32), jnp.asarray(widths, jnp.int32), weight)
    got = run_ffn(h, pool, routing, backend=backend)
    expected = token_by_token(np.asarray(h, np.float64), pool, routing, "silu")
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", EXACT)
def test_results_and_gradients_repeat_bit_for_bit(backend: str) -> None:
    rng = np.random.default_rng(1)
    pool, h = random_pool(rng, [2, 5, 1]), random_tokens(rng, 40)
    routing = random_routing(rng, 40, 2, [2, 5, 1])
    first, second = (ffn_gradients(h, pool, routing, backend) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("backend", EXACT)
def test_the_output_has_the_dtype_of_the_tokens(backend: str) -> None:
    rng = np.random.default_rng(2)
    pool, h = random_pool(rng, [2, 3]), random_tokens(rng, 7).astype(jnp.bfloat16)
    routing = random_routing(rng, 7, 2, [2, 3])
    exact = expert_ffn(h.astype(jnp.float32), pool, routing, backend="reference")
    got = expert_ffn(h, pool, routing, backend=backend)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("backend", BESIDE_REFERENCE)
def test_swapping_modules_or_the_router_does_not_recompile(backend: str) -> None:
    rng = np.random.default_rng(3)
    run = jax.jit(lambda h, pool, routing: expert_ffn(h, pool, routing, backend=backend))
    h = random_tokens(rng, 7)
    for counts in ([2, 3], [3, 2], [1, 4]):
        run(h, random_pool(rng, counts), random_routing(rng, 7, 1, counts))
    assert run._cache_size() == 1


def test_blocks_are_counted_up_to_the_module_s_own() -> None:
    pool = random_pool(np.random.default_rng(4), [2, 4])
    routing = Routing(jnp.array([[0, 1], [1, 0]]), jnp.array([[5, 3], [0, 1]]), jnp.ones((2, 2)))
    np.testing.assert_array_equal(routed_blocks(pool, routing), [2 + 3, 0 + 1])


@pytest.mark.parametrize("width", [1, 4, 5, 11, 12])
def test_cutting_into_blocks_and_back_pads_with_zeros(width: int) -> None:
    rng = np.random.default_rng(width)
    gate, up, down = (rng.normal(size=shape).astype(np.float32) for shape in ((6, width), (6, width), (width, 6)))
    blocks = to_blocks(jnp.asarray(gate), jnp.asarray(up), jnp.asarray(down), 4)
    assert blocks.num_blocks == -(-width // 4)
    whole = from_blocks(blocks)
    np.testing.assert_array_equal(whole[0][:, :width], gate)
    np.testing.assert_array_equal(whole[1][:, :width], up)
    np.testing.assert_array_equal(whole[2][:width], down)
    assert not whole[0][:, width:].any()
    assert not whole[2][width:].any()


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(LabError, match='backend "worklst" does not exist. Did you mean "worklist"'):
        choose_backend("worklst", d_model=8, block=8)


@pytest.mark.parametrize(
    ("platform", "block", "chosen", "reason"),
    [
        pytest.param("cpu", 128, "native", "right numbers", marks=NATIVE.marks),
        ("tpu", 128, "megablox", "shapes suit"),
        ("tpu", 64, "worklist", "multiples of 128, not 256 and 64"),
        ("gpu", 128, "worklist", "not a GPU"),  # this machine's device is what the probe runs on
    ],
)
def test_auto_says_what_it_takes_and_why(platform: str, block: int, chosen: str, reason: str) -> None:
    choice = choose_backend(d_model=256, block=block, platform=platform)
    assert choice.backend == chosen
    assert reason in str(choice)
    assert choice.backend in BACKENDS


def test_a_pool_lays_modules_behind_each_other() -> None:
    rng = np.random.default_rng(5)
    modules = [random_blocks(rng, count) for count in (2, 1, 3)]
    pool = make_pool(modules)
    assert pool.start.tolist() == [0, 2, 3]
    assert pool.count.tolist() == [2, 1, 3]
    for start, module in zip(pool.start, modules, strict=True):
        np.testing.assert_array_equal(pool.blocks.gate[int(start) : int(start) + module.num_blocks], module.gate)
