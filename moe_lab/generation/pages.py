"""What a slot remembers of a text, page by page: put aside, shared by texts that begin alike, and put back.

A page has the keys and values of some tokens in a row and the router's state behind them. One that was taken and put
back has the same bits, so a text that was interrupted, or that begins as another did, goes on as if nothing had
happened.

Shape letters: P tokens of a page, K choices of a token.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.generation.reading import Memory
from moe_lab.nn.cache import LayerCache


class Page(NamedTuple):
    """What one slot remembers of some tokens."""

    layers: tuple[LayerCache, ...]  # keys and values, token after token
    router: Any  # its state behind the newest token that the slot had read


@partial(jax.jit, static_argnums=3)
def take_page(memory: Memory, slot: Any, first: Any, tokens: int) -> Page:
    """A copy of so many tokens of a slot, from this one on. What a ring has forgotten of them is worth nothing."""

    def take(held: jax.Array) -> jax.Array:
        return held[_where(slot, (first + jnp.arange(tokens)) % held.shape[-2])]

    return Page(jax.tree.map(take, memory.cache.layers), jax.tree.map(lambda x: x[slot], memory.router))


@partial(jax.jit, donate_argnums=0)
def put_page(memory: Memory, page: Page, slot: Any, first: Any, count: Any) -> Memory:
    """The memory with the first `count` tokens of a page in a slot, which must have read those in front of them."""
    cache, tokens = memory.cache, page.layers[0].key_BGCA.shape[0]
    index_P, end = first + jnp.arange(tokens), first + count

    def place(slots: int) -> jax.Array:
        stays_P = (index_P < end) & (index_P >= end - slots)
        return jnp.where(stays_P, index_P % slots, slots)

    def put(held: jax.Array, own: jax.Array) -> jax.Array:
        return held.at[_where(slot, place(held.shape[-2]))].set(own, mode="drop")

    cache = cache._replace(
        layers=jax.tree.map(put, cache.layers, page.layers),
        segment_ids_BC=cache.segment_ids_BC.at[slot, place(cache.capacity)].set(1, mode="drop"),
        length_B=cache.length_B.at[slot].set(end),
    )
    return Memory(cache, jax.tree.map(lambda whole, own: whole.at[slot].set(own), memory.router, page.router))


def _where(slot: Any, place_P: jax.Array) -> tuple[Any, ...]:
    """Some tokens of a slot in [..., B, G, C, A], as an index that gives [P, ..., G, A]."""
    return (..., slot, slice(None), place_P, slice(None))


class Kept(NamedTuple):
    """A page that texts may share, and what ran for its tokens."""

    page: Page
    expert_PK: np.ndarray
    blocks_PK: np.ndarray


class Shelf:
    """Pages that were read, by all that their bits depend on: the terms of the text, and its tokens from the first on.

    Those that were not used for longest make room.

    Args:
        most_bytes: of all pages together.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, key: bytes, kept: Kept) -> None:
        """Keeps a page, unless it is there already."""
        size = _bytes_of(kept.page)
        if key in self._kept or size > self.most_bytes:
            return
        while self.bytes + size > self.most_bytes:
            self.bytes -= _bytes_of(self._kept.popitem(last=False)[1].page)
        self._kept[key], self.bytes = kept, self.bytes + size

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def find(self, keys: Iterator[bytes]) -> list[tuple[bytes, Kept]]:
        """The pages with which a text begins, as many as are here in a row; `keys` are those of its pages."""
        found = list(itertools.takewhile(self._kept.__contains__, keys))
        # The first page is used whenever a later one is, so it goes last.
        for key in reversed(found):
            self._kept.move_to_end(key)
        return [(key, self._kept[key]) for key in found]


class Trail:
    """What a text has read since its last full page.

    Args:
        key: of the pages so far, or of the text's terms: see `first_key`.
        tokens: of a page.
    """

    def __init__(self, key: bytes, tokens: int) -> None:
        self._key, self._tokens, self._count = key, tokens, 0
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def note(self, tokens_S: np.ndarray, expert_SK: np.ndarray, blocks_SK: np.ndarray) -> Filled | None:
        """Takes what was read, and what ran for it. The page, where it ends exactly with that.

        A page that ended in between cannot be had, and with it none behind it: the router's state has gone on.
        """
        self._count += len(tokens_S)
        self._parts.append((tokens_S, expert_SK, blocks_SK))
        if self._count != self._tokens:
            return None
        tokens_P, expert_PK, blocks_PK = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._key, self._count, self._parts = next_key(self._key, tokens_P), 0, []
        return Filled(self._key, expert_PK, blocks_PK)

    @property
    def lost(self) -> bool:
        """Whether no page will come any more."""
        return self._count > self._tokens


class Filled(NamedTuple):
    """A page that a text has just filled: its key, and what ran for it."""

    key: bytes
    expert_PK: np.ndarray
    blocks_PK: np.ndarray


def first_key(*terms: bytes) -> bytes:
    """The key in front of a text's first page: all that its bits depend on beside its tokens."""
    return hashlib.sha256(b"".join(len(term).to_bytes(8, "little") + term for term in terms)).digest()


def next_key(key: bytes, tokens_P: np.ndarray) -> bytes:
    """The key of a page, int32, behind what another key stands for."""
    return hashlib.sha256(key + np.ascontiguousarray(tokens_P, np.int32).tobytes()).digest()


def page_keys(key: bytes, tokens_T: np.ndarray, tokens: int) -> Iterator[bytes]:
    """The keys of a text's whole pages, one after the other."""
    for first in range(0, len(tokens_T) - tokens + 1, tokens):
        key = next_key(key, tokens_T[first : first + tokens])
        yield key


def _bytes_of(page: Page) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(page))
