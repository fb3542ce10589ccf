"""A transformer in numpy, float64, one document and one head at a time: what `moe_lab.nn` is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_lab.nn.spec import TrunkSpec

Weights = Mapping[str, np.ndarray]


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


def rotate(x_SA: np.ndarray, positions_S: np.ndarray, base: float) -> np.ndarray:
    """Pairs (i, i + A/2) as complex numbers, turned by position * base^(-2i/A)."""
    half = x_SA.shape[-1] // 2
    angle = np.asarray(positions_S, np.float64)[:, None] * base ** (-2 * np.arange(half) / (2 * half))
    turned = (x_SA[:, :half] + 1j * x_SA[:, half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def attend(q_SA: np.ndarray, k_SA: np.ndarray, v_SA: np.ndarray, segment_ids_S: np.ndarray) -> np.ndarray:
    """Softmax over the earlier tokens of a token's own segment, token by token."""
    out = np.zeros((len(q_SA), v_SA.shape[1]))
    for t in range(len(q_SA)):
        seen = [s for s in range(t + 1) if segment_ids_S[s] == segment_ids_S[t]]
        scores = k_SA[seen] @ q_SA[t] / np.sqrt(q_SA.shape[1])
        weights = np.exp(scores - scores.max())
        out[t] = weights @ v_SA[seen] / weights.sum()
    return out


def linear(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    prefix = f"{name}." if name else ""
    return x @ weights[f"{prefix}weight"] + weights.get(f"{prefix}bias", 0.0)


def gated_ffn(weights: Weights, name: str, x: np.ndarray, activation: str) -> np.ndarray:
    act = {"silu": lambda x: x / (1 + np.exp(-x)), "gelu": lambda x: np.asarray(jax.nn.gelu(x), np.float64)}[activation]
    hidden = act(linear(weights, f"{name}.gate", x)) * linear(weights, f"{name}.up", x)
    return linear(weights, f"{name}.down", hidden)


def attention(weights: Weights, name: str, x_SD: np.ndarray, segments_S, positions_S, spec: TrunkSpec) -> np.ndarray:  # type: ignore[no-untyped-def]
    width, group = spec.attention_dim, spec.num_heads // spec.kv_heads
    q, k, v = (linear(weights, f"{name}.{part}", x_SD) for part in ("query", "key", "value"))
    heads = []
    for h in range(spec.num_heads):
        own, shared = slice(h * width, (h + 1) * width), slice(h // group * width, (h // group + 1) * width)
        q_SA, k_SA = q[:, own], k[:, shared]
        if spec.qk_norm:
            q_SA = rms_norm(q_SA, weights[f"{name}.query_norm.scale"], spec.rms_norm_eps)
            k_SA = rms_norm(k_SA, weights[f"{name}.key_norm.scale"], spec.rms_norm_eps)
        q_SA, k_SA = (rotate(t, positions_S, spec.rope_base) for t in (q_SA, k_SA))
        heads.append(attend(q_SA, k_SA, v[:, shared], segments_S))
    return linear(weights, f"{name}.out", np.concatenate(heads, axis=-1))


def logits(weights: Weights, spec: TrunkSpec, tokens_S: np.ndarray, segments_S, positions_S) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The bare trunk on one row."""
    x = weights["embedding"][tokens_S]
    for index in range(spec.num_layers):
        name = f"layers.{index}"
        h = rms_norm(x, weights[f"{name}.attention_norm.scale"], spec.rms_norm_eps)
        x = x + attention(weights, f"{name}.attention", h, segments_S, positions_S, spec)
        if spec.shared_ffn or index not in spec.routed_layers:
            h = rms_norm(x, weights[f"{name}.ffn_norm.scale"], spec.rms_norm_eps)
            x = x + gated_ffn(weights, f"{name}.ffn", h, spec.activation)
    x = rms_norm(x, weights["norm.scale"], spec.rms_norm_eps)
    return x @ (weights["embedding"].T if spec.tie_embeddings else weights["unembedding.weight"])
