"""The compiled step: some rows read some tokens each, prompt or their own, and the next token of each is drawn.

What a row remembers lies in a slot. A step works on the slots that it is told, where they lie: all arrays of the memory
are donated, so nothing is copied.

Shape letters: B slots, R rows of a step, S tokens of a chunk, K choices of a token, E modules.
"""

from __future__ import annotations

import dataclasses
import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_lab.compose.model import ComposedModel, ModelArrays, run_routing
from moe_lab.generation.sampling import Drawn, Draws, draw_places, draw_tokens, find_likeliest
from moe_lab.nn.backends import native
from moe_lab.nn.cache import Cache, put_rows, take_rows
from moe_lab.nn.decoder import RunLayer
from moe_lab.nn.pool import Routing
from moe_lab.routing.router import Features, Router, normalised


class Memory(NamedTuple):
    """What the slots remember of their texts."""

    cache: Cache  # keys and values
    router: Any  # its state

    def take(self, slot_R: jax.Array) -> Memory:
        """Some slots, each once."""
        return Memory(take_rows(self.cache, slot_R), jax.tree.map(lambda x: x[slot_R], self.router))

    def put(self, own: Memory, slot_R: jax.Array) -> Memory:
        """With what came of slots that were taken."""
        router = jax.tree.map(lambda whole, part: whole.at[slot_R].set(part), self.router, own.router)
        return Memory(put_rows(self.cache, own.cache), router)


class Terms(NamedTuple):
    """On what terms each slot's text is routed."""

    available_BE: Any  # bool
    price_B: Any  # float32
    hint_BE: Any  # float32

    @classmethod
    def usual(cls, model: ComposedModel, rows: int) -> Terms:
        """Everything is available at the composition's price, and nobody knows whose text it is."""
        modules = len(model.space.modules)
        return cls(np.ones((rows, modules), bool), np.full(rows, model.price, np.float32), model.hint([""] * rows))


class Chunk(NamedTuple):
    """What some rows read next: their tokens, then padding."""

    slot_R: Any  # int32
    first_R: Any  # bool, the text begins here: what the slot remembers is another's
    tokens_RS: Any  # int32
    count_R: Any  # int32, tokens that are no padding


class Told(NamedTuple):
    """What the model says behind each token of a chunk, of the one that follows there."""

    logprob_RS: Any  # float32 nats, of the token that follows
    likeliest_RSN: Any  # int32
    likeliest_logprob_RSN: Any  # float32 nats


class Checked(NamedTuple):
    """What came of guesses: rows of a step, and the places of what they read."""

    drawn: Drawn  # [R, S], the token behind each place that counts
    kept_R: Any  # int32, tokens that stay read: the one that was certain, and guesses up to the first wrong one
    expert_RSK: Any  # as of `Read`
    width_RSK: Any
    blocks_RSK: Any


class Read(NamedTuple):
    """What a step did."""

    drawn: Drawn  # the next token of each row, worth something where its chunk was the last of what there is to read
    told: Told | None  # where it was asked for: of the tokens of the chunk themselves
    expert_RSK: Any  # int32, the router's modules
    width_RSK: Any  # int32 blocks asked for per layer
    blocks_RSK: Any  # int32 blocks run, summed over layers


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """What a step is compiled for. Equal ones are one object: comparing graphs at every step takes milliseconds."""

    trunk: nnx.GraphDef
    router: nnx.GraphDef
    run_layer: RunLayer


@functools.lru_cache(maxsize=64)
def _one_structure(trunk: nnx.GraphDef, router: nnx.GraphDef, run_layer: Any) -> Structure:
    return Structure(trunk, router, run_layer)


def structure_of(model: ComposedModel) -> Structure:
    """What a step of this model is compiled for."""
    run_layer: Any = model.run_layer
    return _one_structure(model.trunk_graph, nnx.graphdef(model.router), run_layer)


def empty_memory(model: ComposedModel, slots: int, capacity: int, guesses: int = 0) -> Memory:
    """So many slots of so many tokens each, of which so many guesses may be taken back."""
    trunk = nnx.merge(model.trunk_graph, model.arrays().trunk)
    return Memory(trunk.make_cache(slots, capacity, takes_back=guesses), model.router.init_state(slots))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def read_chunk(
    structure: Structure,
    arrays: ModelArrays,
    memory: Memory,
    chunk: Chunk,
    terms: Terms,
    draws: Draws,
    follows_RS: Any = None,
) -> tuple[Memory, Read]:
    """Reads a chunk of some rows and draws the token behind it.

    Args:
        structure: from `structure_of`.
        arrays: of the model.
        memory: of all slots; it goes, and comes back with the chunk in it.
        chunk: the rows and what they read; their slots differ.
        terms: of all slots.
        draws: of all slots.
        follows_RS: int32, the token behind each of the chunk, if it is to be told what the model says of it.
    """
    slot_R = jnp.asarray(chunk.slot_R)
    terms, draws = _of_slots(slot_R, terms, draws)
    trunk, made, states_RS = _pass(structure, arrays, memory.take(slot_R), chunk, terms)
    state = jax.tree.map(lambda x: x[:, -1], states_RS)
    last_R11 = jnp.maximum(chunk.count_R - 1, 0)[:, None, None]
    logits_RV = trunk.head(jnp.take_along_axis(made.hidden_BSD, last_R11, axis=1), by_token=True)[:, 0]
    never_V = jnp.arange(logits_RV.shape[-1]) >= trunk.spec.vocab_size - trunk.spec.vocab_padding
    told = (
        None
        if follows_RS is None
        else _tell(trunk.head(made.hidden_BSD, by_token=True), jnp.asarray(follows_RS), never_V)
    )
    assert made.cache is not None
    drawn = draw_tokens(logits_RV, made.cache.length_B, draws, never_V)
    after = memory.put(Memory(made.cache, state), slot_R)
    return after, Read(drawn, told, made.routing.expert, made.routing.width, made.blocks_BSK)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def check_guesses(
    structure: Structure, arrays: ModelArrays, memory: Memory, chunk: Chunk, terms: Terms, draws: Draws
) -> tuple[Memory, Checked]:
    """Reads in each row the newest token and guesses at those behind it, and keeps as many as are drawn there anyway.

    What a slot remembers is then what it would remember had it read what stays and no more. Arguments are those of
    `read_chunk`.
    """
    slot_R = jnp.asarray(chunk.slot_R)
    terms, draws = _of_slots(slot_R, terms, draws)
    own = memory.take(slot_R)
    trunk, made, states_RS = _pass(structure, arrays, own, chunk, terms)
    assert made.cache is not None
    tokens_RS, place_S = jnp.asarray(chunk.tokens_RS), jnp.arange(chunk.tokens_RS.shape[1])
    logits_RSV = trunk.head(made.hidden_BSD, by_token=True)
    never_V = jnp.arange(logits_RSV.shape[-1]) >= trunk.spec.vocab_size - trunk.spec.vocab_padding
    counts_RS = place_S < jnp.asarray(chunk.count_R)[:, None]
    drawn = draw_places(logits_RSV, own.cache.length_B[:, None] + place_S + 1, counts_RS, draws, never_V)
    kept_R = count_kept(drawn.token_B, tokens_RS, counts_RS)
    cache = made.cache._replace(length_B=own.cache.length_B + kept_R)
    state = jax.tree.map(lambda x: x[jnp.arange(len(kept_R)), jnp.maximum(kept_R - 1, 0)], states_RS)
    checked = Checked(drawn, kept_R, made.routing.expert, made.routing.width, made.blocks_BSK)
    return memory.put(Memory(cache, state), slot_R), checked


def count_kept(drawn_RS: jax.Array, tokens_RS: jax.Array, counts_RS: jax.Array) -> jax.Array:
    """int32[R], tokens that stay read: the first, and each guess behind it that was drawn there, up to the first wrong.

    Args:
        drawn_RS: the token drawn behind each place.
        tokens_RS: what was read there.
        counts_RS: bool, which places are no padding.
    """
    right_RS = (drawn_RS[:, :-1] == tokens_RS[:, 1:]) & counts_RS[:, 1:]
    right_R = jnp.cumprod(right_RS, axis=1, dtype=jnp.int32).sum(axis=1)
    return jnp.where(counts_RS[:, 0], 1 + right_R, 0)


def _of_slots(slot_R: jax.Array, terms: Terms, draws: Draws) -> tuple[Terms, Draws]:
    of_terms, of_draws = (jax.tree.map(lambda x: jnp.asarray(x)[slot_R], some) for some in (terms, draws))
    return of_terms, of_draws


def _pass(structure: Structure, arrays: ModelArrays, own: Memory, chunk: Chunk, terms: Terms) -> tuple[Any, Any, Any]:
    """The trunk, what came of a chunk in it, and the router's state behind each of its places, [R, S, ...]."""
    trunk, router = nnx.merge(structure.trunk, arrays.trunk), nnx.merge(structure.router, arrays.router)
    rows, length = chunk.tokens_RS.shape
    cache = own.cache._replace(length_B=jnp.where(chunk.first_R, 0, own.cache.length_B))
    state = jax.tree.map(partial(_where_first, jnp.asarray(chunk.first_R)), router.init_state(rows), own.router)

    place_S = jnp.arange(length)
    segment_ids_RS = (place_S < chunk.count_R[:, None]).astype(jnp.int32)
    # A text is one document of its row, so a token's place in the row is its position.
    positions_RS = jnp.where(segment_ids_RS != 0, cache.length_B[:, None] + place_S, 0)
    entered = trunk.enter(chunk.tokens_RS, segment_ids_RS, positions_RS, cache)
    features = Features(
        hidden_BSD=entered.hidden_BSD,
        tokens_BS=jnp.asarray(chunk.tokens_RS),
        segment_ids_BS=segment_ids_RS,
        available_BE=terms.available_BE & arrays.present_E,
        price_B=terms.price_B,
        hint_BE=terms.hint_BE,
    )
    by_token = native.obstacle_here(entered.hidden_BSD.dtype) is None
    if by_token:
        routing, states_RS = _step_by_token(router, state, features)
    else:
        routing, state = _step(router, state, features)
        states_RS = jax.tree.map(lambda x: x[:, None], state)
    # Padding runs nothing.
    routing = routing._replace(width=jnp.where(segment_ids_RS[..., None] != 0, routing.width, 0))
    made = run_routing(
        trunk, arrays, routing, features, positions_RS, entered.hidden_BSD, structure.run_layer, entered.cache
    )
    return trunk, made, states_RS


def _step(router: Router, state: Any, features: Features) -> tuple[Routing, Any]:
    return router.step(state, features._replace(hidden_BSD=normalised(features.hidden_BSD)))


def _step_by_token(router: Router, state: Any, features: Features) -> tuple[Routing, Any]:
    """`_step` of one token of one row after another, so that no other token can change the bits of a decision.

    The states are those behind each token.

    Routers are anybody's code, made of XLA's sums, whose order depends on how many rows they have.
    """

    def read_row(row: tuple[Any, Features]) -> tuple[Routing, Any]:
        state, own = jax.tree.map(lambda x: x[None], row)

        def read_token(state: Any, token: tuple) -> tuple[Any, tuple[Routing, Any]]:
            hidden_D, token_id, segment_id = token
            one = own._replace(
                hidden_BSD=hidden_D[None, None], tokens_BS=token_id[None, None], segment_ids_BS=segment_id[None, None]
            )
            routing, state = _step(router, state, one)
            return state, (jax.tree.map(lambda x: x[0, 0], routing), jax.tree.map(lambda x: x[0], state))

        behind: tuple[Routing, Any] = jax.lax.scan(
            read_token, state, (own.hidden_BSD[0], own.tokens_BS[0], own.segment_ids_BS[0])
        )[1]
        return behind

    behind: tuple[Routing, Any] = jax.lax.map(read_row, (state, features))
    return behind


def _tell(logits_RSV: jax.Array, follows_RS: jax.Array, never_V: jax.Array) -> Told:
    def tell(place: tuple[jax.Array, jax.Array]) -> Told:
        logits_V, follows = place
        logprobs_V = jax.nn.log_softmax(jnp.where(never_V, -jnp.inf, logits_V))
        return Told(logprobs_V[follows], *find_likeliest(logprobs_V))

    rows = follows_RS.shape
    told = jax.lax.map(tell, (logits_RSV.reshape(-1, logits_RSV.shape[-1]), follows_RS.reshape(-1)))
    return jax.tree.map(lambda x: x.reshape(*rows, *x.shape[1:]), told)


def _where_first(first_R: jax.Array, fresh: jax.Array, own: jax.Array) -> jax.Array:
    return jnp.where(first_R.reshape(-1, *[1] * (own.ndim - 1)), fresh, own)
