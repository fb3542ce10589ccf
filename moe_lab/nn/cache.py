"""Keys and values of what rows have read so far: a value that goes into a forward pass and comes out of it.

Every row has a length of its own, so rows of different ages go through one program. A layer with a sliding window keeps
only that window: its slots are a ring.

Shape letters: B rows, S tokens of the chunk that is read, C slots, G key-value heads, A width of one head.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_lab.nn.spec import TrunkSpec


class LayerCache(NamedTuple):
    """Keys, turned already, and values of one layer. Token i of a row lies in slot `i % C`."""

    key_BGCA: jax.Array
    value_BGCA: jax.Array

    @property
    def slots(self) -> int:
        return self.key_BGCA.shape[-2]


class Cache(NamedTuple):
    """What a trunk remembers of its rows. The length and the segments are those of all layers."""

    layers: tuple[LayerCache, ...]
    segment_ids_BC: jax.Array  # int32, of every token read
    length_B: jax.Array  # int32, tokens read
    place_B: jax.Array | None = None  # int32, where these rows lie in the layers, which then have others, too

    @property
    def capacity(self) -> int:
        """Tokens that a row may hold. Whoever reads more into it loses the oldest without a word: look first."""
        return self.segment_ids_BC.shape[1]


class Chunk(NamedTuple):
    """Where the tokens of a chunk stand: in front of them lies what the cache holds."""

    segment_ids_BS: jax.Array
    index_BS: jax.Array  # int32, of each token in its row; padding has that of the token before it
    key_segments_BC: jax.Array  # of what the cache held before the chunk
    length_B: jax.Array  # likewise
    place_B: jax.Array | None  # int32, where its rows lie in the cache, if not all do in order

    @property
    def new_length_B(self) -> jax.Array:
        return self.length_B + (self.segment_ids_BS != 0).sum(-1, dtype=jnp.int32)


def make_cache(
    spec: TrunkSpec, rows: int, capacity: int, dtype: DTypeLike = jnp.float32, *, takes_back: int = 0
) -> Cache:
    """An empty cache.

    Args:
        spec: of the trunk that will read.
        rows: texts read side by side.
        capacity: tokens of the longest.
        dtype: of keys and values: the trunk's compute dtype.
        takes_back: newest tokens of a row that may be taken back by making its length less; a ring has so much more
            room.
    """

    def layer(index: int) -> LayerCache:
        slots = min((spec.window_of(index) or capacity) + takes_back, capacity)
        shape = (rows, spec.kv_heads, slots, spec.attention_dim)
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    layers = tuple(layer(index) for index in range(spec.num_layers))
    return Cache(layers, jnp.zeros((rows, capacity), jnp.int32), jnp.zeros(rows, jnp.int32))


def open_chunk(cache: Cache, segment_ids_BS: jax.Array) -> Chunk:
    """Puts a chunk behind what the cache holds. Padding, segment 0, is not remembered; rows may differ in theirs."""
    index_BS = cache.length_B[:, None] + jnp.cumsum(segment_ids_BS != 0, axis=1, dtype=jnp.int32) - 1
    return Chunk(segment_ids_BS, index_BS, cache.segment_ids_BC, cache.length_B, cache.place_B)


def close_chunk(cache: Cache, chunk: Chunk) -> Cache:
    """The cache behind a chunk that all layers have read: rows grow by it."""
    slot_BS = _slots_to_write(chunk, cache.capacity)
    row_B1 = jnp.arange(len(slot_BS))[:, None]
    segments_BC = cache.segment_ids_BC.at[row_B1, slot_BS].set(chunk.segment_ids_BS, mode="drop")
    return cache._replace(segment_ids_BC=segments_BC, length_B=chunk.new_length_B)


def take_rows(cache: Cache, place_B: jax.Array) -> Cache:
    """Some rows of a cache, each once. Keys and values are not moved: a pass works on them where they lie."""
    return Cache(cache.layers, cache.segment_ids_BC[place_B], cache.length_B[place_B], place_B)


def put_rows(cache: Cache, rows: Cache) -> Cache:
    """The whole cache behind a pass over rows that were taken from it."""
    return Cache(
        rows.layers,
        cache.segment_ids_BC.at[rows.place_B].set(rows.segment_ids_BC),
        cache.length_B.at[rows.place_B].set(rows.length_B),
    )


def rows_of_layer(layer: LayerCache, chunk: Chunk) -> LayerCache:
    """Keys and values of the chunk's rows alone, in its order."""
    return layer if chunk.place_B is None else LayerCache(*(held[chunk.place_B] for held in layer))


def remembered(chunk: Chunk, slots: int) -> tuple[jax.Array, jax.Array]:
    """What lies in the slots of a layer in front of a chunk: token indices, -1 for none, and segments, both [B, C]."""
    last_B1 = chunk.length_B[:, None] - 1
    index_BC = last_B1 - (last_B1 - jnp.arange(slots, dtype=jnp.int32)) % slots
    place_BC = jnp.maximum(index_BC, 0) % chunk.key_segments_BC.shape[1]
    return index_BC, jnp.take_along_axis(chunk.key_segments_BC, place_BC, axis=1)


def once_read(chunk: Chunk, read: jax.Array) -> Chunk:
    """The chunk, to be written once `read` was computed from what lies there.

    XLA writes in place only where it knows that all who read the old content come first; else it copies the whole cache
    in every step. So the place hangs on the result, by a comparison that never holds.
    """
    never = (read[(0,) * read.ndim] > jnp.inf).astype(jnp.int32)
    return chunk._replace(index_BS=chunk.index_BS + never)


def remember(layer: LayerCache, chunk: Chunk, key_BSGA: jax.Array, value_BSGA: jax.Array) -> LayerCache:
    """Writes the chunk's keys and values over the oldest."""
    slot_BS = _slots_to_write(chunk, layer.slots)
    place = (places_of(chunk)[:, None], slice(None), slot_BS)
    return LayerCache(
        layer.key_BGCA.at[place].set(key_BSGA.astype(layer.key_BGCA.dtype), mode="drop"),
        layer.value_BGCA.at[place].set(value_BSGA.astype(layer.value_BGCA.dtype), mode="drop"),
    )


def places_of(chunk: Chunk) -> jax.Array:
    """int32, where the rows of a chunk lie in the layers of its cache."""
    return jnp.arange(len(chunk.length_B), dtype=jnp.int32) if chunk.place_B is None else chunk.place_B


def _slots_to_write(chunk: Chunk, slots: int) -> jax.Array:
    """Slot of each token; `slots`, which is none, for padding and for what later tokens of the chunk overwrite."""
    stays_BS = (chunk.segment_ids_BS != 0) & (chunk.index_BS >= chunk.new_length_B[:, None] - slots)
    return jnp.where(stays_BS, chunk.index_BS % slots, slots)
