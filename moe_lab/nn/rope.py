"""Rotary positions (Su et al. 2021, arXiv 2104.09864), half-split as in Llama checkpoints, and their scalings.

Shape letters: B batch, S sequence, H heads, A width of one head, R = half the turned part of a head.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.nn.spec import LinearScaling, Llama3Scaling, RopeScaling, RopeSpec, YarnScaling


def rotary_tables(positions_BS: jax.Array, rope: RopeSpec, width: int) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of the angle of each pair, float32[B, S, R], times what the scaling multiplies them by.

    Args:
        positions_BS: int32, of each token in its document.
        rope: base and scaling of the frequencies.
        width: 2 R: how much of a head is turned.
    """
    frequency_R, magnitude = rotary_frequencies(rope, width // 2)
    angle_BSR = positions_BS[:, :, None].astype(jnp.float32) * frequency_R
    sin_BSR, cos_BSR = jnp.sin(angle_BSR), jnp.cos(angle_BSR)
    return (sin_BSR, cos_BSR) if magnitude == 1.0 else (sin_BSR * magnitude, cos_BSR * magnitude)


def rotate(x_BSHA: jax.Array, sin_BSR: jax.Array, cos_BSR: jax.Array) -> jax.Array:
    """Turns pairs (i, i + R) of each head of queries or keys, in float32; what of a head is beyond 2 R stays."""
    width = 2 * sin_BSR.shape[-1]
    sin, cos = sin_BSR[:, :, None], cos_BSR[:, :, None]
    turned, rest = x_BSHA[..., :width].astype(jnp.float32), x_BSHA[..., width:]
    first, second = jnp.split(turned, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BSHA.dtype)
    return turned if width == x_BSHA.shape[-1] else jnp.concatenate([turned, rest], axis=-1)


def rotary_frequencies(rope: RopeSpec, half: int) -> tuple[jax.Array, float]:
    """Radians per token of each pair, float32[half], and what sine and cosine are multiplied by."""
    if rope.scaling is None:
        return rope.base ** (-jnp.arange(half, dtype=jnp.float32) / half), 1.0
    plain_R = rope.base ** (-np.arange(half) / half)
    return jnp.asarray(_scaled(plain_R, rope.base, rope.scaling), jnp.float32), _magnitude(rope.scaling)


def _scaled(plain_R: np.ndarray, base: float, scaling: RopeScaling) -> np.ndarray:
    match scaling:
        case LinearScaling():
            return plain_R / scaling.factor
        case Llama3Scaling():
            turns_R = scaling.original_length * plain_R / (2 * math.pi)
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            kept_R = np.clip((turns_R - low) / (high - low), 0, 1)
        case YarnScaling():
            kept_R = _yarn_kept(len(plain_R), base, scaling)
    return plain_R / scaling.factor * (1 - kept_R) + plain_R * kept_R


def _yarn_kept(half: int, base: float, scaling: YarnScaling) -> np.ndarray:
    """How much of each frequency stays: 1 for the fast pairs, 0 for the slow ones, a ramp over pairs between."""

    def pair_that_turns(times: float) -> float:
        return half * math.log(scaling.original_length / (times * 2 * math.pi)) / math.log(base)

    fast, slow = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    fast, slow = max(fast, 0), min(slow, 2 * half - 1)
    ramp_R = (np.arange(half) - fast) / (slow - fast if slow != fast else 1e-3)
    return 1 - np.clip(ramp_R, 0, 1)


def _magnitude(scaling: RopeScaling) -> float:
    if not isinstance(scaling, YarnScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
