"""How the next token is drawn from what the model says.

What is kept of the distribution follows the order that users of other tools know: temperature, then `top_k`, `top_p`
(Holtzman et al. 2020, arXiv 1904.09751) and `min_p` (Nguyen et al. 2024, arXiv 2407.01082), each on what the one
before left. A draw depends on the seed and the token's place in its text, and on nothing else: not on the row, the
batch or what was drawn before.

Shape letters: B rows, V vocabulary, N alternatives.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from moe_lab.config.spec import Spec

ALTERNATIVES = 5
"""So many of the likeliest tokens are told beside the one that was drawn."""


class Sampling(Spec):
    """How one text is written on.

    Attributes:
        max_tokens: it ends after so many.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: keeps so many of the likeliest tokens; 0 keeps all.
        top_p: keeps the fewest likeliest tokens that have this probability together.
        min_p: keeps what has at least this share of the likeliest token's probability.
        seed: of the draws.
        stop: strings that end the text; they are not part of it.
        stop_ids: token ids that end it, beside those with which the trunk ends a text.
        ignore_end: goes on after the trunk's own ends.
    """

    max_tokens: PositiveInt = 128
    temperature: NonNegativeFloat = 0.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    stop_ids: tuple[NonNegativeInt, ...] = ()
    ignore_end: bool = False


class Draws(NamedTuple):
    """The numbers of `Sampling`, one of each for every row: numpy on the host."""

    temperature_B: Any  # float32
    top_k_B: Any  # int32
    top_p_B: Any  # float32
    min_p_B: Any  # float32
    seed_B: Any  # uint32

    @classmethod
    def greedy(cls, rows: int) -> Draws:
        zeros = np.zeros(rows, np.float32)
        return cls(zeros, np.zeros(rows, np.int32), np.ones(rows, np.float32), zeros.copy(), np.zeros(rows, np.uint32))

    def put(self, row: int, sampling: Sampling) -> None:
        """Gives a row what this text is drawn by."""
        for values, value in zip(
            self, (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed), strict=True
        ):
            values[row] = value


class Drawn(NamedTuple):
    """The next token of each row, and what the model said of it before temperature and cuts."""

    token_B: Any  # int32
    logprob_B: Any  # float32 nats
    likeliest_BN: Any  # int32
    likeliest_logprob_BN: Any  # float32 nats


def draw_tokens(logits_BV: jax.Array, place_B: jax.Array, draws: Draws, never_V: jax.Array) -> Drawn:
    """Draws one token for every row.

    Args:
        logits_BV: float32.
        place_B: int32, of the token to come in its text.
        draws: how each row is drawn.
        never_V: bool, rows of the vocabulary that stand for no token.
    """
    logits_BV = jnp.where(never_V, -jnp.inf, logits_BV)
    logprobs_BV = jax.nn.log_softmax(logits_BV)
    warm_B = draws.temperature_B > 0
    scaled_BV = logits_BV / jnp.where(warm_B, draws.temperature_B, 1.0)[:, None]
    cuts = ((draws.top_k_B > 0) | (draws.top_p_B < 1) | (draws.min_p_B > 0)) & warm_B
    # Sorting a large vocabulary takes as long as a small model's layers: only where a row asks for it.
    kept_BV = jax.lax.cond(cuts.any(), keep_likeliest, lambda scaled_BV, draws: scaled_BV, scaled_BV, draws)

    def noise(seed: jax.Array, place: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), place), logits_BV.shape[-1:])

    # The largest of logits with Gumbel noise is a draw from their softmax.
    noisy_BV = jax.lax.cond(
        warm_B.any(), lambda kept_BV: kept_BV + jax.vmap(noise)(draws.seed_B, place_B), lambda kept_BV: kept_BV, kept_BV
    )
    token_B = jnp.where(warm_B, jnp.argmax(noisy_BV, axis=-1), jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)
    likeliest_logprob_BN, likeliest_BN = jax.lax.top_k(logprobs_BV, min(ALTERNATIVES, logits_BV.shape[-1]))
    logprob_B = jnp.take_along_axis(logprobs_BV, token_B[:, None], axis=-1)[:, 0]
    return Drawn(token_B, logprob_B, likeliest_BN, likeliest_logprob_BN)


def keep_likeliest(logits_BV: jax.Array, draws: Draws) -> jax.Array:
    """The logits, with -inf for what `top_k`, `top_p` and `min_p` leave out; the likeliest token always stays.

    Equal logits are kept or left out in the order of their ids.
    """
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    rank_V = jnp.arange(logits_BV.shape[-1])
    top_k_B1 = jnp.where(draws.top_k_B > 0, draws.top_k_B, logits_BV.shape[-1])[:, None]
    sorted_BV = jnp.where(rank_V < top_k_B1, sorted_BV, -jnp.inf)
    share_BV = jax.nn.softmax(sorted_BV)
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    sorted_BV = jnp.where((before_BV < jnp.asarray(draws.top_p_B)[:, None]) | (rank_V == 0), sorted_BV, -jnp.inf)
    least_B1 = sorted_BV[:, :1] + jnp.log(jnp.asarray(draws.min_p_B))[:, None]
    sorted_BV = jnp.where(sorted_BV >= least_B1, sorted_BV, -jnp.inf)
    place_BV = jnp.argsort(order_BV, axis=-1)
    return jnp.take_along_axis(sorted_BV, place_BV, axis=-1)
