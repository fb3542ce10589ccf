"""What a token cost, from its logits or from the hidden state in front of them.

A large vocabulary's logits are the largest array of a pass, so they are made for a few positions at a time and dropped.

Shape letters: B batch, S sequence, D model width, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def token_losses(logits_BSV: jax.Array, targets_BS: jax.Array) -> jax.Array:
    """Cross-entropy in nats of every position, float32[B, S]."""
    target_logit = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BSV, axis=-1) - target_logit


def greedy_hits(logits_BSV: jax.Array, targets_BS: jax.Array) -> jax.Array:
    """Whether greedy decoding would have produced the target, bool[B, S]."""
    return jnp.argmax(logits_BSV, axis=-1) == targets_BS


def mask_padding(logits_BSV: jax.Array, padding: int) -> jax.Array:
    """Logits to pick a token from: those of the last `padding` ids, which stand for no token, are -inf."""
    vocabulary = logits_BSV.shape[-1]
    return jnp.where(jnp.arange(vocabulary) < vocabulary - padding, logits_BSV, -jnp.inf)
