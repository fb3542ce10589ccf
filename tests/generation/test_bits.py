"""The bits of a text are its own: whoever is written beside it, in whatever slot, and however its prompt is cut."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

from moe_lab.generation.engine import Engine
from moe_lab.generation.requests import Request, Step
from moe_lab.generation.sampling import Sampling
from moe_lab.nn.backends import native
from tests.compose.published import MODULES, Published

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.obstacle_here(np.float32) is not None, reason="the promise is the compiled kernel's"),
]

TEXT = "for i in range(3): print(i)  # and so on, naïve 中文"


def requests(count: int, seed: int) -> list[Request]:
    """Texts of all kinds: greedy and drawn, at several prices, without some modules, some with their prompt scored."""
    rng = np.random.default_rng(seed)
    return [
        Request(
            prompt=TEXT[: int(rng.integers(0, len(TEXT)))],
            sampling=Sampling(
                max_tokens=int(rng.integers(3, 14)),
                temperature=float(rng.choice([0.0, 0.7, 1.3])),
                top_k=int(rng.choice([0, 5])),
                top_p=float(rng.choice([1.0, 0.9])),
                min_p=float(rng.choice([0.0, 0.02])),
                seed=int(rng.integers(1000)),
                ignore_end=True,
            ),
            price=float(rng.choice([0.0, 0.1, 0.4])),
            without=tuple(rng.permutation(MODULES)[: rng.integers(0, 3)].tolist()),
            score_prompt=bool(rng.integers(0, 2)),
        )
        for _ in range(count)
    ]


def write(engine: Engine, texts: list[Request], order: list[int]) -> list[list[Step]]:
    """The steps of each text, submitted in this order, some of them while others are being written already."""
    numbers, steps, waiting = {}, defaultdict(list), list(order)
    while waiting or engine.busy:
        for index in waiting[:2]:
            numbers[index] = engine.submit(texts[index])
        waiting = waiting[2:]
        for step in engine.step():
            steps[step.request].append(step)
    return [steps[numbers[index]] for index in range(len(texts))]


def bits(steps: list[Step]) -> list[tuple]:
    """All that a text says, but for the number of its request."""
    return [
        (step.said, step.text, step.modules, step.multiply_adds, step.end, step.receipt, step.prompt) for step in steps
    ]


@pytest.mark.parametrize("router", ["gain", "domain", "topk", "cascade"])
def test_bits_do_not_depend_on_slots_neighbours_arrival_or_chunks(published: Published, router: str) -> None:
    model = published.model(published.lock(f"lab/{router}", MODULES))
    texts, rng = requests(10, 0), np.random.default_rng(1)
    if router != "gain":
        texts = [dataclasses.replace(text, score_prompt=False) for text in texts]
    expected = write(Engine(model, slots=1, capacity=96, chunk=64), texts, list(range(10)))
    for slots, chunk, capacity in ((16, 64, 96), (5, 3, 128))[: 2 if router == "gain" else 1]:
        engine = Engine(model, slots=slots, capacity=capacity, chunk=chunk)
        got = write(engine, texts, rng.permutation(10).tolist())
        for one, other in zip(expected, got, strict=True):
            assert bits(one) == bits(other), (slots, chunk)
