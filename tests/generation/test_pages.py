"""Pages of what texts have read: shared by those that begin alike on equal terms, and without a bit of difference."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.compose.model import ComposedModel
from moe_lab.generation.engine import Engine
from moe_lab.generation.pages import Kept, Page, Shelf, Trail, first_key, next_key, page_keys, put_page, take_page
from moe_lab.generation.reading import Memory
from moe_lab.generation.requests import Request, Step
from moe_lab.generation.sampling import Sampling
from moe_lab.nn.cache import LayerCache, make_cache, take_rows
from moe_lab.nn.decoder import Trunk
from tests.compose.published import MODULES, Published
from tests.generation.test_bits import bits, requests, write
from tests.nn.oracle import randomised
from tests.nn.test_cache import SPEC

PAGE = 4
TEXT = "for i in range(3): print(i)  # and so on"
SAMPLING = Sampling(max_tokens=10, temperature=0.8, seed=3, ignore_end=True)


@pytest.fixture(scope="module")
def model(published: Published) -> ComposedModel:
    return published.model(published.lock("lab/gain", MODULES))


def engine_of(model: ComposedModel, **settings: int) -> Engine:
    return Engine(model, **{"slots": 2, "capacity": 96, "chunk": PAGE, **settings})


def one(engine: Engine, request: Request) -> list[Step]:
    return write(engine, [request], [0])[0]


@pytest.mark.slow
@pytest.mark.parametrize("page", [3, 6])  # less and more than the ring of the sliding layers has
def test_a_slot_goes_on_from_pages_as_if_it_had_read_them(page: int) -> None:
    graph, state = randomised(lambda: Trunk(SPEC, rngs=nnx.Rngs(0)))
    tokens = np.random.default_rng(0).integers(0, 11, 24).astype(np.int32)

    @jax.jit
    def read(memory: Memory, slot: int, tokens_S: jax.Array) -> tuple[Memory, jax.Array]:
        cache = take_rows(memory.cache, jnp.array([slot]))
        place_BS = cache.length_B[:, None] + jnp.arange(len(tokens_S))
        output = nnx.merge(graph, state).forward(
            tokens_S[None], jnp.ones((1, len(tokens_S)), int), place_BS, None, cache
        )
        after = memory.cache._replace(
            layers=output.cache.layers,
            segment_ids_BC=memory.cache.segment_ids_BC.at[slot].set(output.cache.segment_ids_BC[0]),
            length_B=memory.cache.length_B.at[slot].set(output.cache.length_B[0]),
        )
        return Memory(after, memory.router.at[slot].add(tokens_S.sum())), output.hidden_BSD

    def empty() -> Memory:
        return Memory(make_cache(SPEC, 3, 24), jnp.zeros(3, jnp.int32))

    memory, pages = empty(), []
    for first in range(0, 18, page):
        memory, _ = read(memory, 1, tokens[first : first + page])
        pages.append(take_page(memory, 1, first, page))
    other = read(empty(), 0, tokens[::-1][:7])[0]
    for index, own in enumerate(pages):
        other = put_page(other, own, 2, index * page, page)
    for at in (18, 20, 23):
        (memory, expected), (other, got) = (read(m, slot, tokens[at : at + 1]) for m, slot in ((memory, 1), (other, 2)))
        np.testing.assert_array_equal(expected, got)
        assert memory.router[1] == other.router[2]
    assert other.cache.length_B.tolist() == [7, 0, 21]


@pytest.mark.slow
@pytest.mark.parametrize("router", ["gain", "cascade"])
def test_what_is_shared_changes_no_bit(published: Published, router: str) -> None:
    model = published.model(published.lock(f"lab/{router}", MODULES))
    texts = [dataclasses.replace(text, score_prompt=False) for text in requests(8, 3)]
    expected = write(engine_of(model, keep_bytes=0), texts, list(range(8)))
    engine = engine_of(model)
    for _ in range(2):
        got = write(engine, texts, list(range(8)))
        assert [bits(steps) for steps in got] == [bits(steps) for steps in expected]
    whole_pages = [(len(text.prompt.encode()) + 1 - 1) // PAGE * PAGE for text in texts if isinstance(text.prompt, str)]
    assert [steps[0].reused for steps in got] == whole_pages


@pytest.mark.slow
def test_texts_share_what_they_have_in_common_on_equal_terms(model: ComposedModel) -> None:
    engine, begin = engine_of(model), Request(prompt=TEXT[:24], sampling=SAMPLING, price=0.1)
    assert one(engine, begin)[0].reused == 0
    assert one(engine, dataclasses.replace(begin, prompt=TEXT[:11] + "XYZ" + TEXT[14:]))[0].reused == 12
    assert one(engine, dataclasses.replace(begin, prompt=TEXT))[0].reused == 24
    others = ({"price": 0.2}, {"without": MODULES[:1]}, {"score_prompt": True})
    for terms in others:
        assert one(engine, dataclasses.replace(begin, **terms))[0].reused == 0
    assert not any(step.reused for step in one(engine, begin)[1:])


@pytest.mark.slow
def test_a_conversation_goes_on_behind_what_was_written(model: ComposedModel) -> None:
    engine = engine_of(model)
    first = one(engine, Request(prompt=TEXT[:10], sampling=SAMPLING))
    so_far = (model.trunk.tokenizer.start_id, *TEXT[:10].encode(), *(step.token for step in first))
    steps = one(engine, Request(prompt=(*so_far, 65, 66), sampling=SAMPLING))
    assert steps[0].reused == 20, "all that was read, whole pages of it: 21 of 22 tokens, the last was never read"
    assert bits(steps) == bits(
        one(engine_of(model, keep_bytes=0), Request(prompt=(*so_far, 65, 66), sampling=SAMPLING))
    )


def page_of(number: int, size: int = 10) -> Kept:
    """A page of `8 * size + 4` bytes."""
    layer = LayerCache(jnp.full((1, size), number, jnp.float32), jnp.zeros((1, size)))
    return Kept(Page((layer,), jnp.zeros(1, jnp.int32)), np.zeros((1, 1), int), np.zeros((1, 1), int))


def test_what_was_not_used_for_longest_makes_room() -> None:
    shelf, keys = Shelf(3 * 84), [bytes([n]) for n in range(5)]
    for key in keys[:3]:
        shelf.add(key, page_of(key[0]))
    assert [key for key, _ in shelf.find(iter(keys[:2]))] == keys[:2]
    shelf.add(keys[3], page_of(3))
    assert keys[2] not in shelf
    assert shelf.find(iter([keys[2], keys[3]])) == []
    shelf.add(keys[4], page_of(4))
    assert (keys[0] in shelf, keys[1] in shelf) == (True, False), "a page goes after those behind it"
    shelf.add(b"large", page_of(0, size=1000))
    assert b"large" not in shelf
    assert (len(shelf), shelf.bytes) == (3, 252)


def test_the_trail_gives_pages_that_end_where_reading_did() -> None:
    tokens, ran = np.arange(20, dtype=np.int32), np.arange(40).reshape(20, 2)
    start = first_key(b"a", b"b")
    keys = list(page_keys(start, tokens, 5))
    assert len(set(keys)) == 4
    assert keys[1] == next_key(keys[0], tokens[5:10])
    assert start != first_key(b"ab", b"")
    trail = Trail(start, 5)
    filled = [trail.note(tokens[a:b], ran[a:b], ran[a:b] + 1) for a, b in ((0, 2), (2, 5), (5, 10), (10, 14))]
    assert [page and page.key for page in filled] == [None, keys[0], keys[1], None]
    assert filled[1] is not None
    np.testing.assert_array_equal(filled[1].blocks_PK, ran[:5] + 1)
    assert not trail.lost
    assert trail.note(tokens[14:17], ran[14:17], ran[14:17]) is None
    assert trail.lost
