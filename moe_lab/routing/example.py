"""A made-up routing problem whose answer is known, learnable in a second: what the conformance suite runs on.

Shape letters: B rows, S positions, D feature width, E modules, C candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from moe_lab.routing.router import Features, Metrics, Router, normalised
from moe_lab.routing.space import CandidateSpace

D_MODEL = 8
SPACE = CandidateSpace(
    modules=("north/one", "east/two", "south/three"),
    widths=((16,), (16, 32), (16, 32, 64)),
    blocks=((1,), (1, 2), (1, 2, 4)),
    costs=((400,), (400, 800), (400, 800, 1600)),
)
"""Three modules with ladders of one, two and three rungs; a block costs 400 multiply-adds."""


class Example(NamedTuple):
    """Text made up so that the right routing is known: the module that each document wants, the tokens it pays on."""

    features: Features
    module_BS: np.ndarray
    marked_BS: np.ndarray


def draw_example(seed: int, rows: int = 4, length: int = 24) -> Example:
    """Two documents a row, then padding.

    Every token carries a noisy sign of the module that its document wants, in its hidden state and in its id. A third
    of them are marked, in both too: a marked token loses 3 nats on the bare trunk and 2 nats less at the full width of
    the right module, in proportion to width; for the others width gains 0.2 nats at most. The wrong module costs 0.3
    nats more than the trunk.
    """
    rng = np.random.default_rng(seed)
    segment_BS, module_BS = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    for row in range(rows):
        ends = rng.integers(length // 4, length // 2, 2).cumsum()
        for segment, (start, end) in enumerate(((0, ends[0]), tuple(ends)), start=1):
            segment_BS[row, start:end], module_BS[row, start:end] = segment, rng.integers(len(SPACE.modules))
    marked_BS = rng.random((rows, length)) < 1 / 3
    hidden_BSD = rng.normal(size=(rows, length, D_MODEL)) * 0.3
    hidden_BSD[..., : len(SPACE.modules)] += np.eye(len(SPACE.modules))[module_BS]
    hidden_BSD[..., -1] += np.where(marked_BS, 2.0, -2.0)
    # Some ids are any module's, most are of a kind that only one module's text has.
    tokens_BS = rng.integers(4, size=(rows, length)) + np.where(rng.random((rows, length)) < 0.8, 4 * module_BS + 4, 0)
    tokens_BS = tokens_BS // 2 * 2 + marked_BS

    trunk_BS1 = np.where(marked_BS, 3.0, 1.0)[..., None]
    widest_C = SPACE.cost_C[SPACE.widest_E][SPACE.module_C]
    gain_BSC = np.where(marked_BS, 2.0, 0.2)[..., None] * SPACE.cost_C / widest_C
    right_BSC = SPACE.module_C == module_BS[..., None]
    outcomes_BSC = trunk_BS1 - np.where(right_BSC, gain_BSC, -0.3)
    outcomes_BSC[..., 0] = trunk_BS1[..., 0]
    features = Features(
        hidden_BSD=normalised(jnp.asarray(hidden_BSD)),
        tokens_BS=jnp.asarray(tokens_BS, jnp.int32),
        segment_ids_BS=jnp.asarray(segment_BS),
        available_BE=jnp.ones((rows, len(SPACE.modules)), bool),
        price_B=jnp.full(rows, 0.1, jnp.float32),
        outcomes_BSC=jnp.asarray(outcomes_BSC, jnp.float32),
    )
    return Example(features, module_BS, marked_BS)


def make_example_router(cls: type[Router], seed: int = 0, /, **settings: Any) -> Router:
    """A fresh router of this class that chooses from `SPACE`; `settings` are its config."""
    return cls(cls.Config(**settings), SPACE, D_MODEL, rngs=nnx.Rngs(seed))


def example_loss(router: Router, example: Example, draw: jax.Array) -> tuple[jax.Array, Metrics]:
    """What a router that learns from outcomes minimises on the example."""
    loss, metrics = router.outcome_loss(example.features.for_all_rows(price=draw))
    if not router.learns_from_text:
        return loss, metrics
    features = example.features
    text_loss, more = router.text_loss(features.tokens_BS, features.segment_ids_BS, jnp.asarray(example.module_BS))
    return loss + text_loss, {**metrics, **more}


def learn_example(router: Router, *, steps: int = 200, learning_rate: float = 0.03, rows: int = 32) -> Router:
    """The router after training on outcomes of the example, with a fresh draw of the price in every step."""
    optimizer, example = optax.adam(optax.cosine_decay_schedule(learning_rate, steps)), draw_example(100, rows)
    router.prepare(example.features)
    split: Any = nnx.split(router, nnx.Param, ...)
    graph, start, counted = split

    def step(carry: tuple, draw: jax.Array) -> tuple[tuple, jax.Array]:
        params, state = carry

        def loss_of(params: nnx.State) -> jax.Array:
            return example_loss(nnx.merge(graph, params, counted), example, draw)[0]

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    draws = jax.random.uniform(jax.random.key(0), (steps,))
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, draws))((start, optimizer.init(start)))
    return nnx.merge(graph, params, counted)
