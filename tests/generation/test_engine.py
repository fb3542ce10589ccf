"""What is written token by token is what the whole text says, whoever is written beside it."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from moe_lab.compose.model import ComposedModel
from moe_lab.errors import LabError
from moe_lab.generation.engine import Engine
from moe_lab.generation.reading import read_chunk
from moe_lab.generation.requests import Request, Step
from moe_lab.generation.sampling import Sampling
from tests.compose.published import FIXED, MODULES, Published, Tokens

pytestmark = pytest.mark.slow

STEPPING = ("gain", "domain", "topk", "cascade")
PROMPTS = ("", "de", "for i in range(3): print(i)", "naïve 中文 " * 5)
ROUNDS = int(os.environ.get("MOE_LAB_ROUNDS", "40"))
"""Random requests in a row; 10,000 for as many as docs/generating.md speaks of."""
LONG = Sampling(max_tokens=12, ignore_end=True)


def choice(router: str) -> Any:
    return FIXED if router == "fixed" else f"lab/{router}"


@pytest.fixture(scope="module")
def models(published: Published) -> dict[str, ComposedModel]:
    return {name: published.model(published.lock(choice(name), MODULES)) for name in (*STEPPING, "fixed")}


def run(engine: Engine, requests: list[Request]) -> list[list[Step]]:
    """The steps of each text."""
    numbers, steps = [engine.submit(request) for request in requests], defaultdict(list)
    while engine.busy:
        for step in engine.step():
            steps[step.request].append(step)
    return [steps[number] for number in numbers]


def engine_of(model: ComposedModel, **sizes: int) -> Engine:
    return Engine(model, **{"slots": 3, "capacity": 128, "chunk": 8, **sizes})


def read_whole(model: ComposedModel, request: Request, steps: list[Step]) -> tuple[np.ndarray, Any]:
    """Logits and routing of the prompt and what was written, in one pass over whole rows."""
    ids = [model.trunk.tokenizer.start_id, *model.trunk.tokenizer.encode(request.prompt)[0]]
    tokens = np.array([[*ids, *(step.token for step in steps[:-1])]], np.int32)
    place = np.arange(tokens.shape[1], dtype=np.int32)[None]
    batch = Tokens(tokens, np.zeros_like(tokens), np.ones_like(tokens), place)
    arrays = model.arrays()
    logits, decision = model.run_with_logits(
        arrays,
        batch,
        model.enter(arrays, batch),
        available_E=model.available(request.without),
        price=request.price,
    )
    return np.asarray(logits)[0], decision


@pytest.mark.parametrize("router", [*STEPPING, "fixed"])
def test_greedy_text_is_that_of_reading_the_whole_prefix_again(models: dict[str, ComposedModel], router: str) -> None:
    model = models[router]
    requests = [Request(prompt=prompt, sampling=LONG, price=0.1) for prompt in PROMPTS]
    for request, steps in zip(requests, run(engine_of(model), requests), strict=True):
        logits, decision = read_whole(model, request, steps)
        own = logits[-len(steps) :]
        np.testing.assert_array_equal([step.token for step in steps], own.argmax(-1))
        whole = own - np.log(np.exp(own.astype(np.float64)).sum(-1, keepdims=True))
        np.testing.assert_allclose([step.said.logprob for step in steps], whole.max(-1), atol=1e-4)
        expert, width = (np.asarray(field)[0, -len(steps) :] for field in (decision.expert_BSK, decision.width_BSK))
        routed = [
            tuple((model.space.modules[e], int(w) * 4) for e, w in zip(es, ws, strict=True) if w)
            for es, ws in zip(expert, width, strict=True)
        ]
        assert [step.modules for step in steps] == routed
        receipt = steps[-1].receipt
        assert receipt is not None
        assert receipt.tokens_read == logits.shape[0]
        blocks = int(np.asarray(decision.blocks_BS).sum())
        assert receipt.multiply_adds == (
            blocks * model.multiply_adds_per_block + receipt.tokens_read * model.router.multiply_adds
        )


def test_the_prompt_s_own_tokens_are_told_as_the_whole_pass_says(models: dict[str, ComposedModel]) -> None:
    model = models["gain"]
    for prompt in (PROMPTS[2], tuple(PROMPTS[2].encode()), (model.trunk.tokenizer.start_id, *PROMPTS[2].encode())):
        request = Request(prompt=prompt, sampling=LONG, score_prompt=True)
        (steps,) = run(engine_of(model), [request])
        logits, _ = read_whole(model, Request(prompt=PROMPTS[2]), steps)
        tokens = [*PROMPTS[2].encode()]
        whole = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
        assert [said.token for said in steps[0].prompt] == tokens
        expected = whole[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose([said.logprob for said in steps[0].prompt], expected, atol=1e-4)
        assert [said.likeliest[0][0] for said in steps[0].prompt] == whole[: len(tokens)].argmax(-1).tolist()
        assert not any(step.prompt for step in steps[1:])


def test_texts_side_by_side_are_those_written_alone(models: dict[str, ComposedModel]) -> None:
    model = models["gain"]
    warm = LONG.model_copy(update={"temperature": 1.0})
    requests = [
        Request(
            prompt=PROMPTS[n % 4],
            sampling=warm.model_copy(update={"seed": n}),
            price=(0.0, 0.3)[n % 2],
            without=MODULES[n % 3 : n % 3 + 1],
        )
        for n in range(7)
    ]
    together = run(engine_of(model), requests)
    for request, steps in zip(requests, together, strict=True):
        (alone,) = run(engine_of(model, slots=1, chunk=16), [request])
        assert [step.token for step in steps] == [step.token for step in alone]
        assert steps[-1].receipt == alone[-1].receipt
        used = {name for step in steps for name, _ in step.modules}
        assert not used & set(request.without)
        np.testing.assert_allclose([s.said.logprob for s in steps], [s.said.logprob for s in alone], atol=1e-4)
    assert len({tuple(step.token for step in steps) for steps in together}) > 5


def test_nothing_compiles_after_the_first_two_programs(models: dict[str, ComposedModel]) -> None:
    engine, rng = engine_of(models["domain"]), np.random.default_rng(0)
    run(engine, [Request(prompt="some words first", sampling=LONG)])
    programs = read_chunk._cache_size()
    requests = [
        Request(
            prompt="x" * int(rng.integers(0, 60)),
            sampling=Sampling(max_tokens=int(rng.integers(1, 20)), temperature=float(n % 2), top_k=n % 3, seed=n),
            price=float(n % 3),
            without=MODULES[: n % 3],
            domain="code" if n % 2 else None,
        )
        for n in range(ROUNDS)
    ]
    assert all(steps[-1].end for steps in run(engine, requests))
    assert read_chunk._cache_size() == programs


def test_a_long_prompt_keeps_nobody_waiting_for_more_than_a_chunk(models: dict[str, ComposedModel]) -> None:
    engine = engine_of(models["fixed"])
    first = engine.submit(Request(prompt="a", sampling=LONG))
    engine.step()
    engine.submit(Request(prompt="b" * 64, sampling=LONG))
    for _ in range(7):  # 65 tokens, eight at a time
        assert [step.request for step in engine.step()] == [first], "one token of the first text, none of the second"


def test_a_cancelled_text_gives_its_slot_to_the_next(models: dict[str, ComposedModel]) -> None:
    engine = engine_of(models["fixed"], slots=1)
    first = engine.submit(Request(prompt="a" * 40, sampling=LONG))
    second = engine.submit(Request(prompt="b", sampling=LONG))
    third = engine.submit(Request(prompt="c", sampling=LONG))
    engine.step()
    engine.cancel(first)
    engine.cancel(third)
    steps = []
    while engine.busy:
        steps += engine.step()
    assert {step.request for step in steps} == {second}
    (alone,) = run(engine_of(models["fixed"], slots=1), [Request(prompt="b", sampling=LONG)])
    assert [step.token for step in steps] == [step.token for step in alone]


def test_a_text_ends_with_a_stop_an_id_the_trunk_s_own_or_its_length(models: dict[str, ComposedModel]) -> None:
    model = models["fixed"]
    free = LONG.model_copy(update={"temperature": 1.0, "seed": 4, "max_tokens": 60})
    (whole,) = run(engine_of(model), [Request(prompt="a", sampling=free)])
    text, token = "".join(step.text for step in whole), whole[5].token
    assert (whole[-1].end, len(whole)) == ("length", 60)
    stop = text[6:8]
    endings = [{"stop": (stop,)}, {"stop_ids": (token,)}, {"max_tokens": 1}]
    at_stop, at_id, at_one = run(
        engine_of(model), [Request(prompt="a", sampling=free.model_copy(update=ending)) for ending in endings]
    )
    assert "".join(step.text for step in at_stop) == text[: text.find(stop)]
    assert at_stop[-1].end == at_id[-1].end == "stop"
    first = next(place for place, step in enumerate(whole) if step.token == token)
    assert [step.token for step in at_id] == [step.token for step in whole[: first + 1]]
    assert at_id[-1].text == "" or at_id[-1].text.endswith("\ufffd")
    assert (at_one[-1].end, len(at_one)) == ("length", 1)
    trunk = dataclasses.replace(model.trunk, ends=(token,))
    own = Request(prompt="a", sampling=free.model_copy(update={"ignore_end": False}))
    (ended,) = run(engine_of(dataclasses.replace(model, trunk=trunk)), [own])
    assert [step.token for step in ended] == [step.token for step in at_id]


def test_what_cannot_be_written_is_refused_by_name(published: Published, models: dict[str, ComposedModel]) -> None:
    for router, message in ((choice("budget"), "routes by what comes later"), ({"type": "oracle"}, "what comes later")):
        with pytest.raises(LabError, match=message):
            Engine(published.model(published.lock(router, MODULES)))
    engine = engine_of(models["fixed"])
    for request, message in (
        (Request(prompt="a" * 120, sampling=LONG), r"needs room for 133, and there is room for 128"),
        (Request(prompt="a", sampling=LONG, without=("west/sum",)), 'cannot leave out "west/sum"'),
        (Request(prompt="a", sampling=LONG, without=MODULES), "all modules are opted out"),
        (Request(prompt="a", sampling=LONG, price=float("nan")), "price is nan"),
        (Request(prompt="a", sampling=LONG, price=-1.0), "price is -1.0"),
    ):
        with pytest.raises(LabError, match=message):
            engine.submit(request)
    assert not engine.busy
