"""Which widths a batch should run if it may spend so much and no more: greedy over the concave hulls of its ladders.

An upgrade is an edge of a token's hull, from one vertex to the next. Along a hull the gain per cost falls, so taking
the best upgrades of all tokens first takes those of each token in order. This is the linear relaxation of the
multiple-choice knapsack (Sinha and Zoltners 1979): no choice of widths within the budget gains more than what is
taken here and the first upgrade that did not fit.

Shape letters: N tokens, Q the rungs of a token's ladder, from the bare trunk up, R = Q - 1 steps between them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def hull_slopes(gain_NQ: jax.Array, cost_NQ: jax.Array) -> jax.Array:
    """Gain per cost [N, R] of each step, on the least concave majorant of the ladder; it never rises along a ladder.

    By the min-max formula `min_{a <= r} max_{b > r} (gain_b - gain_a) / (cost_b - cost_a)`. Steps that cost nothing,
    at the end of a ladder that is shorter than the others, have slope -inf.
    """
    dearer_NQQ = cost_NQ[:, None, :] - cost_NQ[:, :, None]  # [N, a, b]
    better_NQQ = gain_NQ[:, None, :] - gain_NQ[:, :, None]
    slope_NQQ = jnp.where(dearer_NQQ > 0, better_NQQ / jnp.maximum(dearer_NQQ, 1), -jnp.inf)
    # max over b > r, for every r: a running maximum from the far end.
    reach_NQR = jnp.flip(jax.lax.cummax(jnp.flip(slope_NQQ, -1), axis=2), -1)[..., 1:]
    place = jnp.arange(reach_NQR.shape[-1])
    from_here = jnp.arange(reach_NQR.shape[1])[:, None] <= place
    slope_NR = jnp.where(from_here, reach_NQR, jnp.inf).min(1)
    return jnp.where(jnp.diff(cost_NQ, axis=-1) > 0, slope_NR, -jnp.inf)


def best_upgrades(gain_NQ: jax.Array, cost_NQ: jax.Array, least_slope_N1: jax.Array, total: jax.Array) -> jax.Array:
    """The rung [N] that each token runs.

    Args:
        gain_NQ: predicted gain over the bare trunk, in nats.
        cost_NQ: int32, from 0 up; equal to the rung before where a ladder has ended.
        least_slope_N1: of each token, or one of all: upgrades with no more gain per cost than this are not bought.
        total: int32, what all tokens may cost together. Never exceeded.
    """
    slope_NR = hull_slopes(gain_NQ, cost_NQ)
    pays_F = (slope_NR > least_slope_N1).ravel()
    order_F = jnp.argsort(-slope_NR.ravel(), stable=True)
    step_F = jnp.diff(cost_NQ, axis=-1).ravel()
    spent_F = jnp.cumsum(jnp.where(pays_F, step_F, 0)[order_F])
    taken_F = jnp.zeros_like(pays_F).at[order_F].set(spent_F <= total) & pays_F
    reached_N1 = jnp.cumprod(taken_F.reshape(slope_NR.shape), axis=-1).sum(-1, keepdims=True)
    return _vertex_below(slope_NR, reached_N1)


def _vertex_below(slope_NR: jax.Array, reached_N1: jax.Array) -> jax.Array:
    """The last vertex of the hull at or below a rung: in the middle of an edge a token may lose more than it pays."""
    ends = jnp.ones_like(slope_NR[:, :1], bool)
    vertex_NQ = jnp.concatenate([ends, slope_NR[:, :-1] > slope_NR[:, 1:], ends], axis=-1)
    rung_Q = jnp.arange(vertex_NQ.shape[-1])
    return jnp.where(vertex_NQ & (rung_Q <= reached_N1), rung_Q, 0).max(-1)
