"""The trunk against numpy and against Llama; what it promises about time, documents and its three parts."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pydantic import ValidationError

from moe_lab.nn.decoder import Experts, Trunk
from moe_lab.nn.expert_ffn import OneDevice
from moe_lab.nn.losses import greedy_hits, token_losses
from moe_lab.nn.pool import Routing, make_pool
from moe_lab.nn.spec import TrunkSpec
from tests.nn import oracle
from tests.nn.drawing import random_blocks

pytestmark = pytest.mark.slow

VOCABULARY, LENGTH = 11, 70
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 8,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_width": 10,
    "block": 4,
    "routed_layers": (1,),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qk_norm, biases, gelu": {"qk_norm": True, "attention_bias": True, "ffn_bias": True, "activation": "gelu"},
    "one kv head, wide heads, own unembedding": {"num_kv_heads": 1, "head_dim": 6, "tie_embeddings": False},
    "no shared FFN": {"shared_ffn": False, "rope_base": 500.0, "rms_norm_eps": 0.1},
}


@functools.cache
def made(variant: str = "plain") -> tuple[TrunkSpec, nnx.State, Any]:
    """A trunk with random numbers, and its compiled call."""
    spec = TrunkSpec(**BASE, **VARIANTS[variant])
    graph, state = oracle.randomised(lambda: Trunk(spec, rngs=nnx.Rngs(0)))
    return spec, state, jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))


def row(*lengths: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row [1, LENGTH] of random documents of these lengths, padded with segment 0: tokens, segments, positions."""
    rng = np.random.default_rng(seed)
    assert sum(lengths) <= LENGTH
    segments, positions = np.zeros((1, LENGTH), np.int32), np.zeros((1, LENGTH), np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for number, (start, length) in enumerate(zip(starts, lengths, strict=False), start=1):
        segments[0, start : start + length] = number
        positions[0, start : start + length] = np.arange(length)
    return rng.integers(0, VOCABULARY, (1, LENGTH)).astype(np.int32), segments, positions


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_computes_its_definition(variant: str) -> None:
    spec, state, call = made(variant)
    tokens, segments, positions = row(30, 36)
    got = call(state, tokens, segments, positions)
    expected = oracle.logits(oracle.weights_of(state), spec, tokens[0], segments[0], positions[0])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[0], expected, rtol=2e-4, atol=2e-4)


def test_a_later_token_changes_no_bit_of_an_earlier_logit() -> None:
    _, state, call = made()
    tokens, segments, positions = row(LENGTH)
    before = np.asarray(call(state, tokens, segments, positions))
    for place in (1, 40, 64, 65):
        changed = tokens.copy()
        changed[0, place:] = (changed[0, place:] + 1) % VOCABULARY
        after = np.asarray(call(state, changed, segments, positions))
        np.testing.assert_array_equal(after[0, :place], before[0, :place])
        assert (after[0, place:] != before[0, place:]).any(-1).all()


def test_a_document_reads_the_same_packed_behind_another_and_alone() -> None:
    _, state, call = made()
    tokens, segments, positions = row(30, 36)
    alone, alone_segments, alone_positions = row(36)
    alone[0, :36] = tokens[0, 30:66]
    packed = call(state, tokens, segments, positions)[0, 30:66]
    np.testing.assert_allclose(packed, call(state, alone, alone_segments, alone_positions)[0, :36], atol=1e-5)
    other = tokens.copy()
    other[0, :30] = (other[0, :30] + 1) % VOCABULARY
    np.testing.assert_array_equal(packed, call(state, other, segments, positions)[0, 30:66])


def routed_everywhere(width: int, weight: float = 1.0) -> Routing:
    shape = (1, LENGTH, 1)
    return Routing(jnp.zeros(shape, jnp.int32), jnp.full(shape, width), jnp.full(shape, weight, jnp.float32))


@pytest.fixture(scope="module")
def three_parts() -> Any:
    """Runs the parts one by one and the call, on the same experts."""
    spec = TrunkSpec(**{**BASE, "num_layers": 3, "routed_layers": (1, 2)})
    graph, state = oracle.randomised(lambda: Trunk(spec, rngs=nnx.Rngs(0)))
    inputs = row(30, 36)

    @jax.jit
    def run(pools: Any, routing: Routing) -> tuple:
        trunk = nnx.merge(graph, state)
        experts = Experts(pools, routing, OneDevice(backend="reference"), keep_inputs=True)
        hidden = trunk.enter(*inputs).hidden_BSD
        routed = trunk.routed(hidden, *inputs[1:], experts)
        return hidden, trunk.head(routed.hidden_BSD), trunk(*inputs, experts), routed.side.inputs

    return spec, state, inputs, run


def test_the_three_parts_together_are_the_call_and_experts_add_to_the_residual_stream(three_parts) -> None:
    spec, state, inputs, run = three_parts
    rng = np.random.default_rng(2)
    blocks = {layer: random_blocks(rng, 3, d_model=8) for layer in (1, 2)}
    pools = {layer: make_pool([blocks[layer]]) for layer in (1, 2)}
    hidden, logits, called, taps = run(pools, routed_everywhere(2, weight=0.7))
    np.testing.assert_allclose(logits, called, rtol=1e-6, atol=1e-6)
    weights = oracle.weights_of(state)
    tokens, segments, positions = (part[0] for part in inputs)
    x = weights["embedding"][tokens]
    for index in range(3):
        name = f"layers.{index}"
        if index == 1:
            np.testing.assert_allclose(hidden[0], x, rtol=1e-4, atol=1e-4)
        h = oracle.rms_norm(x, weights[f"{name}.attention_norm.scale"], spec.rms_norm_eps)
        x = x + oracle.attention(weights, f"{name}.attention", h, segments, positions, spec)
        h = oracle.rms_norm(x, weights[f"{name}.ffn_norm.scale"], spec.rms_norm_eps)
        x = x + oracle.gated_ffn(weights, f"{name}.ffn", h, "silu")
        if index in blocks:
            np.testing.assert_allclose(taps[index], h.reshape(-1, 8), rtol=1e-4, atol=1e-4)
            for gate, up, down in zip(*(np.asarray(w[:2], np.float64) for w in blocks[index]), strict=True):
                a = h @ gate
                x = x + 0.7 * (a / (1 + np.exp(-a)) * (h @ up)) @ down
    expected = oracle.rms_norm(x, weights["norm.scale"], spec.rms_norm_eps) @ weights["embedding"].T
    np.testing.assert_allclose(logits[0], expected, rtol=3e-4, atol=3e-4)


def test_losses_are_cross_entropies_and_hits_are_argmaxes() -> None:
    logits = jnp.array([[[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(token_losses(logits, jnp.array([[3, 0]])), [[np.log(4), 0.0]], atol=1e-6)
    np.testing.assert_allclose(token_losses(logits, jnp.array([[3, 1]])), [[np.log(4), 50.0]], atol=1e-5)
    np.testing.assert_array_equal(greedy_hits(logits, jnp.array([[0, 1]])), [[True, False]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 9}, "d_model 9 must be a multiple of num_heads 2, or set head_dim"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads 4 must be a multiple of num_kv_heads 3"),
        ({"head_dim": 3}, "head_dim 3 must be even"),
        ({"d_model": 6}, "head_dim 3 must be even"),
        ({"routed_layers": (1, 0)}, r"routed_layers \[1, 0\] must rise without repeats"),
        ({"routed_layers": (1, 1)}, r"routed_layers \[1, 1\] must rise without repeats"),
        ({"routed_layers": (1, 2)}, r"routed_layers \[1, 2\] must lie in 0..1"),
        ({"routed_layers": (-1, 0)}, r"routed_layers \[-1, 0\] must lie in 0..1"),
        ({"ffn_width": 0}, "ffn_width 0 needs shared_ffn: false"),
        ({"block": 0}, "block"),
        ({"activation": "relu"}, "activation"),
        ({"rope_bas": 1e6}, "rope_bas"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrunkSpec(**{**BASE, **fields})


def test_what_a_spec_leaves_out_is_derived() -> None:
    spec = TrunkSpec(**BASE)
    assert (spec.kv_heads, spec.attention_dim, spec.routing_layer) == (2, 4, 1)
    assert TrunkSpec(**{**BASE, "routed_layers": ()}).routing_layer == 2
    wide = TrunkSpec(**{**BASE, "d_model": 9, "head_dim": 6, "num_kv_heads": 1})
    assert (wide.kv_heads, wide.attention_dim) == (1, 6)


def _copy_into_llama(weights: oracle.Weights, llama: Any) -> None:
    """Our [in, out] matrices into a `LlamaForCausalLM`, whose matrices are [out, in]."""
    import torch

    ours = {
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.out",
        "mlp.gate_proj": "ffn.gate",
        "mlp.up_proj": "ffn.up",
        "mlp.down_proj": "ffn.down",
    }
    copied = {
        "model.embed_tokens.weight": weights["embedding"],
        "model.norm.weight": weights["norm.scale"],
        "lm_head.weight": weights["unembedding.weight"].T,
    }
    for index in range(len(llama.model.layers)):
        theirs, own = f"model.layers.{index}", f"layers.{index}"
        copied |= {f"{theirs}.{name}.weight": weights[f"{own}.{part}.weight"].T for name, part in ours.items()}
        copied[f"{theirs}.input_layernorm.weight"] = weights[f"{own}.attention_norm.scale"]
        copied[f"{theirs}.post_attention_layernorm.weight"] = weights[f"{own}.ffn_norm.scale"]
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in copied.items()}
    llama.load_state_dict(state, strict=True)


def test_it_is_llama_with_llama_s_weights() -> None:
    torch = pytest.importorskip("torch", reason="the peer to compare with comes with moe-lab[peers]")
    transformers = pytest.importorskip("transformers", reason="the peer to compare with comes with moe-lab[peers]")
    spec = TrunkSpec(**{**BASE, "num_heads": 4, "num_kv_heads": 2, "tie_embeddings": False, "rope_base": 1234.0})
    graph, state = oracle.randomised(lambda: Trunk(spec, rngs=nnx.Rngs(0)))
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=spec.d_model,
        intermediate_size=spec.ffn_width,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.kv_heads,
        hidden_act=spec.activation,
        rms_norm_eps=spec.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_base},
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    _copy_into_llama(oracle.weights_of(state), llama)
    tokens, segments, positions = row(LENGTH)
    with torch.no_grad():
        expected = llama(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(nnx.merge(graph, state)(tokens, segments, positions), expected, rtol=1e-3, atol=1e-3)
