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


class Likely(NamedTuple):
    """What the model says of a place: the likeliest tokens there, with their log probabilities."""

    token_N: jax.Array  # int32
    logprob_N: jax.Array  # float32 nats


def find_likeliest(logprobs_V: jax.Array) -> Likely:
    """The `ALTERNATIVES` likeliest tokens."""
    logprob_N, token_N = jax.lax.top_k(logprobs_V, min(ALTERNATIVES, len(logprobs_V)))
    return Likely(token_N, logprob_N)


def draw_tokens(logits_BV: jax.Array, place_B: jax.Array, draws: Draws, never_V: jax.Array) -> Drawn:
    """Draws one token for every row.

    Rows go one after another: so the order in which a row's probabilities are summed is its own, and the bits with it,
    and only rows that ask for a cut pay for one.

    Args:
        logits_BV: float32.
        place_B: int32, of the token to come in its text.
        draws: how each row is drawn.
        never_V: bool, rows of the vocabulary that stand for no token.
    """

    def draw_row(row: tuple[jax.Array, jax.Array, Draws]) -> Drawn:
        return _draw_row(*row, never_V)

    return jax.lax.map(draw_row, (logits_BV, place_B, jax.tree.map(jnp.asarray, draws)))


def draw_places(
    logits_BSV: jax.Array, place_BS: jax.Array, counts_BS: jax.Array, draws: Draws, never_V: jax.Array
) -> Drawn:
    """As `draw_tokens` at several places of every row, [B, S], of those that count; zeros elsewhere."""

    def draw_place(place: tuple[jax.Array, jax.Array, jax.Array, Draws]) -> Drawn:
        logits_V, index, counts, draw = place

        def draw_it(logits_V: jax.Array, index: jax.Array, draw: Draws) -> Drawn:
            return _draw_row(logits_V, index, draw, never_V)

        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(draw_it, logits_V, index, draw))
        return jax.lax.cond(counts, draw_it, lambda *_: nothing, logits_V, index, draw)

    rows, places, _ = logits_BSV.shape
    each = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), places, axis=0), draws)
    flat = (logits_BSV.reshape(rows * places, -1), place_BS.reshape(-1), counts_BS.reshape(-1), each)
    return jax.tree.map(lambda x: x.reshape(rows, places, *x.shape[1:]), jax.lax.map(draw_place, flat))


def _draw_row(logits_V: jax.Array, place: jax.Array, draw: Draws, never_V: jax.Array) -> Drawn:
    logits_V = jnp.where(never_V, -jnp.inf, logits_V)
    logprobs_V = jax.nn.log_softmax(logits_V)
    token = jax.lax.cond(
        draw.temperature_B > 0, _draw_warm, lambda logits_V, *_: jnp.argmax(logits_V), logits_V, place, draw
    )
    return Drawn(token.astype(jnp.int32), logprobs_V[token], *find_likeliest(logprobs_V))


def _draw_warm(logits_V: jax.Array, place: jax.Array, draw: Draws) -> jax.Array:
    scaled_V = logits_V / draw.temperature_B
    # Sorting a large vocabulary takes as long as a small model's layers.
    cuts = (draw.top_k_B > 0) | (draw.top_p_B < 1) | (draw.min_p_B > 0)
    kept_V = jax.lax.cond(cuts, keep_likeliest, lambda scaled_V, draw: scaled_V, scaled_V, draw)
    # The largest of logits with Gumbel noise is a draw from their softmax.
    noise_V = jax.random.gumbel(jax.random.fold_in(jax.random.key(draw.seed_B), place), kept_V.shape)
    return jnp.argmax(kept_V + noise_V)


def keep_likeliest(logits_V: jax.Array, draw: Draws) -> jax.Array:
    """The logits, with -inf for what `top_k`, `top_p` and `min_p` of one row leave out; the likeliest always stays.

    Equal logits are kept or left out in the order of their ids.
    """
    order_V = jnp.argsort(-logits_V, stable=True)
    sorted_V, rank_V = logits_V[order_V], jnp.arange(len(logits_V))
    top_k = jnp.where(draw.top_k_B > 0, draw.top_k_B, len(logits_V))
    sorted_V = jnp.where(rank_V < top_k, sorted_V, -jnp.inf)
    share_V = jax.nn.softmax(sorted_V)
    before_V = jnp.cumsum(share_V) - share_V
    sorted_V = jnp.where((before_V < draw.top_p_B) | (rank_V == 0), sorted_V, -jnp.inf)
    least = sorted_V[0] + jnp.log(draw.min_p_B)
    sorted_V = jnp.where(sorted_V >= least, sorted_V, -jnp.inf)
    return sorted_V[jnp.argsort(order_V)]
