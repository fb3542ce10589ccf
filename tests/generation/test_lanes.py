"""Texts that nobody waits for take what is left, are interrupted without a trace, and come to their end."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import pytest

from moe_lab.compose.model import ComposedModel
from moe_lab.generation import lanes
from moe_lab.generation.engine import Engine
from moe_lab.generation.lanes import Queues, Share
from moe_lab.generation.pages import put_page, take_page
from moe_lab.generation.reading import check_guesses, read_chunk
from moe_lab.generation.requests import Request, Step
from moe_lab.generation.sampling import Sampling
from tests.compose.published import MODULES, Published
from tests.generation.test_bits import bits, requests, write

DRAWN = Sampling(max_tokens=24, temperature=0.9, ignore_end=True)
BATCH = Request(prompt="for i in range(3): ", sampling=DRAWN, lane="batch")
WAITED_FOR = Request(prompt="and so", sampling=Sampling(max_tokens=5, ignore_end=True))


@pytest.fixture(scope="module")
def model(published: Published) -> ComposedModel:
    return published.model(published.lock("lab/gain", MODULES))


def engine_of(model: ComposedModel, **settings: int) -> Engine:
    return Engine(model, **{"slots": 2, "capacity": 96, "chunk": 4, **settings})


def take_step(engine: Engine, steps: dict[int, list[Step]]) -> None:
    for step in engine.step():
        steps[step.request].append(step)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"guesses": 3}, {"keep_bytes": 0}], ids=str)
def test_an_interrupted_text_goes_on_to_the_same_bits(model: ComposedModel, settings: dict[str, int]) -> None:
    texts = [dataclasses.replace(BATCH, sampling=DRAWN.model_copy(update={"seed": n})) for n in range(2)]
    alone = [write(engine_of(model, keep_bytes=0), [text], [0])[0] for text in (*texts, WAITED_FOR)]
    engine, steps = engine_of(model, **settings), defaultdict(list)
    numbers = [engine.submit(text) for text in texts]
    for _ in range(3):  # in the prompt, on a page's border, and where it is written
        while len(steps[numbers[1]]) < 3 * len(numbers[2:]) + 1 and engine.busy:
            take_step(engine, steps)
        numbers.append(engine.submit(WAITED_FOR))
        before = len(steps[numbers[1]])
        while not steps[numbers[-1]]:
            take_step(engine, steps)
        assert len(steps[numbers[1]]) == before, "the newer one has given up its slot"
    while engine.busy:
        take_step(engine, steps)
    for number, own in zip(numbers, (*alone, alone[-1], alone[-1]), strict=True):
        assert bits(steps[number]) == bits(own)


@pytest.mark.slow
def test_neither_lane_waits_for_ever(model: ComposedModel) -> None:
    """Somebody always waits, and batch texts end all the same; and the other way round."""
    for many, few in ((WAITED_FOR, BATCH), (BATCH, WAITED_FOR)):
        engine, steps = engine_of(model), defaultdict(list)
        for _ in range(4):
            engine.submit(many)
        number = engine.submit(few)
        for _ in range(2000):
            for step in engine.step():
                steps[step.request].append(step)
                if step.end is not None and step.request != number:
                    engine.submit(many)
            if steps[number] and steps[number][-1].end is not None:
                break
        assert steps[number][-1].end == "length"


@pytest.mark.slow
def test_an_interrupted_text_that_is_cancelled_leaves_a_receipt(model: ComposedModel) -> None:
    engine, steps = engine_of(model), defaultdict(list)
    numbers = [engine.submit(BATCH) for _ in range(3)]
    while not steps[numbers[1]]:
        take_step(engine, steps)
    waited_for = engine.submit(WAITED_FOR)
    take_step(engine, steps)
    receipt = engine.cancel(numbers[1])
    assert receipt is not None
    assert receipt.tokens_read >= 20
    assert engine.cancel(numbers[1]) is None
    assert engine.cancel(numbers[2]) is None, "it had not begun"
    while engine.busy:
        take_step(engine, steps)
    assert {number for number, own in steps.items() if own and own[-1].end} == {numbers[0], waited_for}


@pytest.mark.slow
def test_nothing_compiles_once_it_is_warm(model: ComposedModel) -> None:
    engine = engine_of(model, slots=5, guesses=2)
    engine.warm()
    programs = (read_chunk, check_guesses, take_page, put_page)
    before = [program._cache_size() for program in programs]
    texts = [
        dataclasses.replace(text, lane="batch" if n % 3 else "interactive") for n, text in enumerate(requests(30, 7))
    ]
    assert all(steps[-1].end for steps in write(engine, texts, list(range(30))))
    assert [program._cache_size() for program in programs] == before


class Stub:
    """Of a text what lanes look at."""

    def __init__(self, number: int, lane: str, parked: bool = False) -> None:
        self.number, self.interactive, self.parked = number, lane == "interactive", parked


def queues_of(slots: int, *waiting: Any) -> Queues:
    queues = Queues(slots)
    for text in waiting:
        queues.add(text)
    return queues


def test_who_gets_a_slot() -> None:
    first, second = Stub(0, "batch"), Stub(1, "interactive")
    busy = [Stub(10 + n, "interactive") for n in range(3)]
    assert queues_of(4, first, second).next(busy) is first, "the last slot is the batch lane's"
    assert queues_of(4, first, second).next(busy[:2]) is second
    assert queues_of(4, first, second).next([*busy[:2], Stub(9, "batch")]) is second
    assert queues_of(4, second).next(busy) is second, "as long as it has texts"
    assert queues_of(1, first, second).next([]) is first, "one slot knows no lanes"
    assert queues_of(3, first, second).next(busy) is None
    queues = queues_of(4, first, Stub(2, "batch", parked=True))
    assert [text.number for text in queues] == [2, 0], "what was interrupted goes on first"
    assert queues.remove(0) is first
    assert queues.remove(0) is None
    assert len(queues) == 1


def test_whose_slot_is_taken() -> None:
    batch, waiting = [Stub(n, "batch") for n in range(3)], Stub(5, "interactive")
    assert queues_of(3, waiting).interrupted(batch) is batch[2]
    assert queues_of(3, Stub(5, "batch")).interrupted(batch) is None
    assert queues_of(4, waiting).interrupted(batch) is None, "there is a slot"
    assert queues_of(2, waiting).interrupted([batch[0], Stub(4, "interactive")]) is None, "its only one stays"


@pytest.mark.parametrize(("alone", "joined"), [(1.0, 1.1), (1.0, 2.5), (3.0, 9.0)])
def test_batch_texts_take_their_share_of_the_time_and_no_more(alone: float, joined: float) -> None:
    share, seconds, steps = Share(), 0.0, 4000
    for _ in range(steps):
        join = share.may_join("a token")
        taken = joined if join else alone
        share.note("a token", join, taken)
        seconds += taken
    possible = min(lanes.SHARE, joined / alone - 1)
    assert seconds / (alone * steps) == pytest.approx(1 + possible, rel=0.03)
