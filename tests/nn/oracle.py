"""A transformer in numpy, float64, one document and one head at a time: what `moe_lab.nn` is held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_lab.nn.spec import LinearScaling, Llama3Scaling, RopeSpec, TrunkSpec, YarnScaling

Weights = Mapping[str, np.ndarray]


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _gelu_erf(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": _gelu_tanh,
    "gelu_tanh": _gelu_tanh,
    "gelu_erf": _gelu_erf,
}


def randomised(make: Callable[[], nnx.Module], seed: int = 0) -> tuple[nnx.GraphDef, nnx.State]:
    """A module with every number drawn at random, biases and scales included, without compiling its initialisers."""
    rng = np.random.default_rng(seed)
    graph, abstract = nnx.split(nnx.eval_shape(make))

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        spread = 0.3 if len(leaf.shape) == 1 else leaf.shape[0] ** -0.5
        return jnp.asarray(spread * rng.normal(size=leaf.shape) + (len(leaf.shape) == 1), leaf.dtype)

    return graph, jax.tree.map(draw, abstract)


def weights_of(state: nnx.State) -> dict[str, np.ndarray]:
    """Parameters by dotted path, in float64."""
    flat = nnx.to_flat_state(state)
    return {".".join(map(str, path)): np.asarray(variable[...], np.float64) for path, variable in flat}


def rms_norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def rotate(x_SA: np.ndarray, positions_S: np.ndarray, rope: RopeSpec) -> np.ndarray:
    """Pairs (i, i + A/2) as complex numbers, turned by position * frequency."""
    half = x_SA.shape[-1] // 2
    frequency, magnitude = frequencies(rope, half)
    angle = np.asarray(positions_S, np.float64)[:, None] * frequency
    turned = (x_SA[:, :half] + 1j * x_SA[:, half:]) * np.exp(1j * angle) * magnitude
    return np.concatenate([turned.real, turned.imag], axis=-1)


def frequencies(rope: RopeSpec, half: int) -> tuple[np.ndarray, float]:
    """Pair by pair, as the papers say it."""
    plain = [rope.base ** (-2 * i / (2 * half)) for i in range(half)]
    match rope.scaling:
        case None:
            return np.array(plain), 1.0
        case LinearScaling(factor=factor):
            return np.array(plain) / factor, 1.0
        case Llama3Scaling() as llama:
            return np.array([_llama3(f, llama) for f in plain]), 1.0
        case YarnScaling() as yarn:
            low, high = (_yarn_pair(beta, rope.base, half, yarn) for beta in (yarn.beta_fast, yarn.beta_slow))
            low, high = (np.floor(low), np.ceil(high)) if yarn.truncate else (low, high)
            ramp = [min(max((i - max(low, 0)) / (min(high, 2 * half - 1) - max(low, 0)), 0), 1) for i in range(half)]
            mixed = [f / yarn.factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]
            return np.array(mixed), yarn.attention_factor or 0.1 * np.log(yarn.factor) + 1


def _llama3(frequency: float, scaling: Llama3Scaling) -> float:
    wavelength = 2 * np.pi / frequency
    if wavelength > scaling.original_length / scaling.low_frequency_factor:
        return frequency / scaling.factor
    if wavelength < scaling.original_length / scaling.high_frequency_factor:
        return frequency
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    smooth = (scaling.original_length / wavelength - scaling.low_frequency_factor) / span
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def _yarn_pair(turns: float, base: float, half: int, scaling: YarnScaling) -> float:
    return 2 * half * np.log(scaling.original_length / (turns * 2 * np.pi)) / (2 * np.log(base))


def attend(  # type: ignore[no-untyped-def]
    q_SA, k_SA, v_SA, segment_ids_S, scale=None, softcap=None, window=None
) -> np.ndarray:
    """Softmax over the earlier tokens of a token's own segment, token by token."""
    out = np.zeros((len(q_SA), v_SA.shape[1]))
    for t in range(len(q_SA)):
        first = 0 if window is None else max(0, t - window + 1)
        seen = [s for s in range(first, t + 1) if segment_ids_S[s] == segment_ids_S[t]]
        scores = k_SA[seen] @ q_SA[t] * (q_SA.shape[1] ** -0.5 if scale is None else scale)
        scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        out[t] = weights @ v_SA[seen] / weights.sum()
    return out


def linear(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    prefix = f"{name}." if name else ""
    return x @ weights[f"{prefix}weight"] + weights.get(f"{prefix}bias", 0.0)


def gated_ffn(weights: Weights, name: str, x: np.ndarray, activation: str) -> np.ndarray:
    hidden = ACTIVATIONS[activation](linear(weights, f"{name}.gate", x)) * linear(weights, f"{name}.up", x)
    return linear(weights, f"{name}.down", hidden)


def attention(  # type: ignore[no-untyped-def]
    weights: Weights, name: str, x_SD: np.ndarray, segments_S, positions_S, spec: TrunkSpec, layer: int = 0
) -> np.ndarray:
    width, group = spec.attention_dim, spec.num_heads // spec.kv_heads
    q, k, v = (linear(weights, f"{name}.{part}", x_SD) for part in ("query", "key", "value"))
    whole, rope = spec.qk_norm_over == "projection", spec.rope_of(layer)

    def norm(x: np.ndarray, part: str) -> np.ndarray:
        return rms_norm(x, weights[f"{name}.{part}_norm.scale"] + spec.norm_offset, spec.rms_norm_eps)

    def turn(x_SA: np.ndarray) -> np.ndarray:
        if rope is None:
            return x_SA
        return np.concatenate([rotate(x_SA[:, : spec.rotary_dim], positions_S, rope), x_SA[:, spec.rotary_dim :]], -1)

    if spec.qk_norm and whole:
        q, k = norm(q, "query"), norm(k, "key")
    heads = []
    for h in range(spec.num_heads):
        own, shared = slice(h * width, (h + 1) * width), slice(h // group * width, (h // group + 1) * width)
        q_SA, k_SA = q[:, own], k[:, shared]
        if spec.qk_norm and not whole:
            q_SA, k_SA = norm(q_SA, "query"), norm(k_SA, "key")
        limits = spec.attention_scale, spec.attention_softcap, spec.window_of(layer)
        heads.append(attend(turn(q_SA), turn(k_SA), v[:, shared], segments_S, *limits))
    return linear(weights, f"{name}.out", np.concatenate(heads, axis=-1))


def logits(weights: Weights, spec: TrunkSpec, tokens_S: np.ndarray, segments_S, positions_S) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The bare trunk on one row."""

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        name = f"{name}.scale"
        return rms_norm(x, weights[name] + spec.norm_offset, spec.rms_norm_eps) if name in weights else x

    x = weights["embedding"][tokens_S] * spec.embedding_multiplier
    for index in range(spec.num_layers):
        name = f"layers.{index}"
        h = attention(
            weights, f"{name}.attention", norm(f"{name}.attention_norm", x), segments_S, positions_S, spec, index
        )
        x = x + spec.residual_multiplier * norm(f"{name}.attention_post_norm", h)
        if spec.has_ffn(index):
            h = gated_ffn(weights, f"{name}.ffn", norm(f"{name}.ffn_norm", x), spec.activation)
            x = x + spec.residual_multiplier * norm(f"{name}.ffn_post_norm", h)
    x = norm("norm", x) @ (weights["embedding"].T if spec.tie_embeddings else weights["unembedding.weight"])
    x = spec.logit_multiplier * x
    return x if spec.logit_softcap is None else spec.logit_softcap * np.tanh(x / spec.logit_softcap)
