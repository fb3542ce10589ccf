"""The server in this process: answers are what the engine writes, and mistakes are a status and one sentence."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from moe_lab.compose.model import ComposedModel
from moe_lab.generation.chat import Message, chat_prompt, chat_request
from moe_lab.generation.engine import Engine
from moe_lab.generation.reading import read_chunk
from moe_lab.generation.requests import Request
from moe_lab.generation.sampling import Sampling
from moe_lab.serving.app import Limits, make_app
from moe_lab.serving.batches import Batches
from moe_lab.serving.metrics import ServerMetrics
from moe_lab.serving.usage import note_use, sum_use
from moe_lab.serving.writer import Writer
from tests.compose.published import MODULES, Published
from tests.generation.test_chat import conversing

pytestmark = pytest.mark.slow

PROMPT = "for i in"
SLOTS = 2


class Served:
    """A server on the tiny model, with its ledger."""

    def __init__(
        self,
        model: ComposedModel,
        ledger: Path,
        limits: Limits,
        api_key: str | None = None,
        batches: Batches | None = None,
    ):
        self.ledger, self.metrics = ledger, ServerMetrics()
        self.engine = Engine(model, slots=SLOTS, capacity=128, chunk=8)
        self.engine.warm()

        def note(written: int, receipt: Any, end: str) -> None:
            self.metrics.note_text(written, receipt, end)
            note_use(ledger, "sha256-0", written, receipt, end)

        self.writer = Writer(self.engine, note, most_waiting=2)
        self.writer.start()
        self.app = make_app(
            self.writer, name="tiny", metrics=self.metrics, limits=limits, api_key=api_key, batches=batches
        )
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def post(self, **body: Any) -> httpx.Response:
        answer: httpx.Response = self.client.post("/v1/completions", json={"prompt": PROMPT, "temperature": 0, **body})
        return answer


@pytest.fixture(scope="module")
def model(published: Published) -> ComposedModel:
    return published.model(published.lock("lab/gain", MODULES))


@pytest.fixture(scope="module")
def served(model: ComposedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = Limits(body_bytes=40_000, body_seconds=2.0)
    served = Served(model, tmp_path_factory.mktemp("served") / "ledger.jsonl", limits)
    yield served
    served.writer.stop()


def written(model: ComposedModel, prompt: str = PROMPT, **sampling: Any) -> list[Any]:
    engine = Engine(model, slots=1, capacity=128, chunk=8)
    engine.submit(Request(prompt=prompt, sampling=Sampling(**sampling)))
    steps = []
    while engine.busy:
        steps += engine.step()
    return steps


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_answer_is_what_the_engine_writes(served: Served, model: ComposedModel) -> None:
    answer = served.post(max_tokens=12, logprobs=2).json()
    steps = written(model, max_tokens=12)
    (choice,) = answer["choices"]
    assert choice["text"] == "".join(step.text for step in steps)
    assert choice["finish_reason"] == steps[-1].end
    assert choice["logprobs"]["token_logprobs"] == pytest.approx([step.said.logprob for step in steps], abs=1e-4)
    assert [len(top) <= 2 for top in choice["logprobs"]["top_logprobs"]] == [True] * len(steps)
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(PROMPT), len(steps))
    assert usage["moe_lab"]["receipts"] == [json.loads(json.dumps(steps[-1].receipt.as_json()))]
    assert [part["modules"] for part in choice["moe_lab"]["routing"]] == [dict(step.modules) for step in steps]


def test_what_was_read_before_is_told_and_changes_nothing(served: Served) -> None:
    price = {"price": 0.123}  # terms of its own, so that no other test has read it
    first, second = (served.post(max_tokens=12, **price).json() for _ in range(2))
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, second)]
    assert cached == [0, 8], "a page of eight: all but the last of nine tokens"
    assert first["choices"] == second["choices"]
    assert first["usage"]["moe_lab"] == second["usage"]["moe_lab"]


def test_a_stream_is_the_same_text_in_parts(served: Served) -> None:
    served.post(max_tokens=12)
    whole = served.post(max_tokens=12).json()
    parts = events(served.post(max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert "".join(part["choices"][0]["text"] for part in parts[:-1]) == whole["choices"][0]["text"]
    assert parts[-1]["usage"] == whole["usage"]
    assert len(parts) == 13
    assert {part["object"] for part in parts} == {"text_completion"}


def test_prompts_and_choices_come_in_order_each_with_its_own_draws(served: Served, model: ComposedModel) -> None:
    answer = served.post(prompt=["a", "b"], n=2, temperature=1, seed=5, max_tokens=6).json()
    texts = [choice["text"] for choice in answer["choices"]]
    expected = [
        "".join(step.text for step in written(model, prompt, max_tokens=6, temperature=1.0, seed=seed))
        for prompt in "ab"
        for seed in (5, 6)
    ]
    assert texts == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


def test_echo_with_logprobs_scores_the_prompt(served: Served) -> None:
    ids = list(PROMPT.encode())
    asked = {"echo": True, "logprobs": 1, "max_tokens": 1}
    by_text, by_ids = (served.post(prompt=prompt, **asked).json() for prompt in (PROMPT, ids))
    assert by_text["choices"] == by_ids["choices"]
    (choice,) = by_text["choices"]
    assert choice["text"].startswith(PROMPT)
    scored = choice["logprobs"]
    assert scored["tokens"][: len(PROMPT)] == list(PROMPT)
    assert len(scored["token_logprobs"]) == len(PROMPT) + 1
    assert all(value < 0 for value in scored["token_logprobs"])


def test_terms_are_the_request_s_own(served: Served) -> None:
    free, dear = served.post(max_tokens=8), served.post(max_tokens=8, price=1e9)
    without = served.post(max_tokens=8, without=list(MODULES[:2]))
    receipts = [answer.json()["usage"]["moe_lab"]["receipts"][0] for answer in (free, dear, without)]
    assert receipts[0]["modules"]
    assert receipts[1]["modules"] == []
    assert {use["module"].split("@")[0] for use in receipts[2]["modules"]} <= {MODULES[2]}


def test_what_is_noted_is_what_was_written(served: Served) -> None:
    before, _ = sum_use(served.ledger, "day")
    answer = served.post(max_tokens=5).json()
    after, torn = sum_use(served.ledger, "day")
    (was,), (now,) = before, after
    assert torn == 0
    assert now.texts - was.texts == 1
    assert now.multiply_adds - was.multiply_adds == answer["usage"]["moe_lab"]["multiply_adds"]
    by_owner, _ = sum_use(served.ledger, "owner")
    by_module, _ = sum_use(served.ledger, "module")
    assert {use.name for use in by_owner} <= {name.split("/")[0] for name in MODULES}
    assert sum(use.multiply_adds for use in by_owner) == sum(use.multiply_adds for use in by_module)


def test_models_health_state_metrics_and_page(served: Served) -> None:
    get = served.client.get
    assert [one["id"] for one in get("/v1/models").json()["data"]] == ["tiny"]
    assert get("/health").json() == {"status": "ok", "texts": 0}
    state = get("/v1/state").json()
    assert [one["module"].split("@")[0] for one in state["modules"]] == list(MODULES)
    metrics = get("/metrics").text
    assert "moe_lab_tokens_written_total " in metrics
    assert 'moe_lab_texts_ended_total{end="length"}' in metrics
    assert "<h1" in get("/").text


def test_nothing_compiles_for_a_request(served: Served) -> None:
    programs = read_chunk._cache_size()
    for number in range(12):
        served.post(max_tokens=1 + number, logprobs=number % 3, echo=number % 2 == 0, temperature=number % 2, top_p=0.5)
    assert read_chunk._cache_size() == programs


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b"\xff\xfe", 400, "not UTF-8"),
        (b'{"prompt": NaN}', 400, "NaN, which is no number"),
        (b'{"temperature": Infinity}', 400, "Infinity"),
        (b"[" * 15_000, 400, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", 400, "thousands of digits"),
        (b'{"prompt": "' + b"a" * 41_000 + b'"}', 413, "more than 40,000 bytes"),
        ({"prompt": 7}, 400, "prompt"),
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": [[]]}, 400, "prompt"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": [1, "a"]}, 400, "prompt"),
        ({"prompt": [257]}, 400, "tokens of this trunk are 0 to 256"),
        ({"prompt": ["a"] * 65}, 400, "64 at most"),
        ({"prompt": "a" * 200}, 400, "there is room for 128"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": -5}, 400, "max_tokens"),
        ({"max_tokens": 1e6}, 400, "max_tokens"),
        ({"max_tokens": 1_000_000}, 400, "there is room for 128"),
        ({"max_tokens": "8"}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"top_p": 1.5}, 400, "top_p"),
        ({"top_k": -1}, 400, "top_k"),
        ({"min_p": 2}, 400, "min_p"),
        ({"n": 0}, 400, "n: "),
        ({"n": 99}, 400, "n: "),
        ({"seed": 0.5}, 400, "seed"),
        ({"stop": 7}, 400, "stop"),
        ({"stop": ["a"] * 4000}, 400, "stop has 4000 strings; 16 at most"),
        ({"stop_ids": [-1]}, 400, "stop_ids"),
        ({"logprobs": 99}, 400, "logprobs"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"stream": "yes"}, 400, "stream"),
        ({"best_of": 3}, 400, "best_of"),
        ({"suffix": "x"}, 400, "suffix"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"logit_bias": {"5": 1.0}}, 400, "logit_bias is not supported"),
        ({"prise": 1}, 400, "prise is no field of this server"),
        ({"price": -1}, 400, "price"),
        ({"price": "free"}, 400, "price"),
        ({"without": "north/code"}, 400, "without"),
        ({"without": ["north/cod"]}, 404, 'cannot leave out "north/cod"'),
        ({"without": list(MODULES)}, 400, "all modules are opted out"),
        ({"model": "gpt-9"}, 404, 'there is no model "gpt-9"; this server has tiny'),
        ({"without": ["north/cod"], "stream": True}, 404, 'cannot leave out "north/cod"'),
        ({"user": 5}, 400, "user"),
        ({"stream_options": {"include": True}}, 400, "stream_options"),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[:40],
)
def test_a_bad_request_is_a_status_and_one_sentence(
    served: Served, body: bytes | dict[str, Any], status: int, message: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps({"prompt": "a", **body}).encode()
    answer = served.client.post("/v1/completions", content=data)
    assert answer.status_code == status, answer.text
    said = answer.json()["error"]["message"]
    assert message in said
    assert "\n" not in said
    assert len(said) < 300
    assert served.client.get("/health").json()["status"] == "ok"


def test_other_paths_and_methods_name_those_there_are(served: Served) -> None:
    for method, path, status in (("GET", "/v1/completions", 405), ("GET", "/nothing", 404), ("DELETE", "/health", 405)):
        answer = served.client.request(method, path)
        assert answer.status_code == status
        assert "POST /v1/completions" in answer.json()["error"]["message"]


def test_too_many_texts_are_told_when_to_come_again(served: Served) -> None:
    async def all_at_once() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=served.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"prompt": "a", "max_tokens": 100, "temperature": 1, "seed": 3}
            return await asyncio.gather(*(client.post("/v1/completions", json=body, timeout=200) for _ in range(7)))

    answers = asyncio.run(all_at_once())
    full = [answer for answer in answers if answer.status_code == 429]
    assert len(full) == 7 - SLOTS - 2
    assert {answer.headers["retry-after"] for answer in full} == {"2"}
    assert {answer.status_code for answer in answers} == {200, 429}


def test_a_key_is_asked_for_where_one_is_set(model: ComposedModel, tmp_path: Path) -> None:
    served = Served(model, tmp_path / "ledger.jsonl", Limits(), api_key="secret")
    try:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            for answer in (
                served.client.post("/v1/completions", json={"prompt": "a"}, headers=headers),
                served.client.get("/v1/models", headers=headers),
            ):
                assert answer.status_code == 401
                assert "API key" in answer.json()["error"]["message"]
        own = {"Authorization": "Bearer secret"}
        assert served.client.post("/v1/completions", json={"prompt": "a"}, headers=own).status_code == 200
        assert served.client.get("/health").status_code == 200
    finally:
        served.writer.stop()


def test_a_model_that_fails_tells_everybody_and_health(model: ComposedModel, tmp_path: Path) -> None:
    served = Served(model, tmp_path / "ledger.jsonl", Limits())
    threading.excepthook, usual = (lambda _: None), threading.excepthook
    try:
        served.engine.step = lambda: 1 / 0  # type: ignore[assignment,method-assign,return-value]
        answer = served.post()
        assert answer.status_code == 503
        assert "the model failed while it wrote (division by zero)" in answer.json()["error"]["message"]
        assert served.post().status_code == 503
        assert served.client.get("/health").status_code == 503
    finally:
        threading.excepthook = usual


def wait_until(true: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_who_stops_listening_gives_the_slot_back(served: Served) -> None:
    async def leave() -> None:
        steps = served.writer.write(Request(prompt="a", sampling=Sampling(max_tokens=100, temperature=1.0, seed=3)))
        async for _ in steps:
            break
        await steps.aclose()

    before = sum_use(served.ledger, "day")[0][0].texts
    asyncio.run(leave())
    wait_until(lambda: not served.engine.busy)
    assert served.writer.texts == 0
    wait_until(lambda: sum_use(served.ledger, "day")[0][0].texts == before + 1)


@pytest.fixture(scope="module")
def conversation(model: ComposedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(conversing(model), tmp_path_factory.mktemp("chat") / "ledger.jsonl", Limits())
    yield served
    served.writer.stop()


TURNS = [{"role": "developer", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def converse(served: Served, **body: Any) -> httpx.Response:
    asked = {"messages": TURNS, "temperature": 0, "max_completion_tokens": 6, **body}
    answer: httpx.Response = served.client.post("/v1/chat/completions", json=asked)
    return answer


def test_a_turn_is_what_the_engine_writes_whole_and_in_parts(conversation: Served) -> None:
    model = conversation.engine.model
    turns = [Message(role="system", content="be"), Message(role="user", content="hi")]
    engine = Engine(model, slots=1, capacity=128, chunk=8)
    engine.submit(chat_request(model, turns, sampling=Sampling(max_tokens=6)))
    steps = []
    while engine.busy:
        steps += engine.step()
    whole = converse(conversation, logprobs=True, top_logprobs=2).json()
    (choice,) = whole["choices"]
    assert whole["object"] == "chat.completion"
    assert choice["message"]["content"] == "".join(step.text for step in steps)
    assert choice["message"]["role"] == "assistant"
    told = choice["logprobs"]["content"]
    assert [one["logprob"] for one in told] == [step.said.logprob for step in steps]
    assert {len(one["top_logprobs"]) for one in told} == {2}
    assert whole["usage"]["prompt_tokens"] == len(chat_prompt(model.trunk, turns))
    parts = events(converse(conversation, stream=True, stream_options={"include_usage": True}))
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    deltas = [choice["delta"] for part in parts for choice in part["choices"]]
    assert "".join(delta["content"] for delta in deltas) == choice["message"]["content"]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert parts[-1]["usage"]["completion_tokens"] == len(steps)


def test_a_turn_ends_where_the_room_does(conversation: Served) -> None:
    answer = conversation.client.post("/v1/chat/completions", json={"messages": TURNS, "temperature": 1.5, "seed": 3})
    usage = answer.json()["usage"]
    assert usage["total_tokens"] <= 128
    assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a<|endoftext|>b"}]}, 'message 1 holds "<|endoftext|>"'),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, "room for"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"prompt": "a"}, "prompt is no field"),
        ({"top_logprobs": 50}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_sentence(conversation: Served, body: Any, said: str) -> None:
    answer = converse(conversation, **body)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


def test_a_model_without_a_template_does_not_converse(served: Served) -> None:
    answer = converse(served)
    assert answer.status_code == 409
    assert "came without a chat template" in answer.json()["error"]["message"]
