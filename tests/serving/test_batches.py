"""Batches in this process: answers are those of single requests, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from moe_lab.compose.model import ComposedModel
from moe_lab.errors import Damaged, LabError
from moe_lab.generation.requests import Request
from moe_lab.serving import batch_files
from moe_lab.serving.app import Limits
from moe_lab.serving.batch_files import Batch, BatchFolder
from moe_lab.serving.batches import Batches
from moe_lab.serving.bodies import BatchBody
from tests.compose.published import MODULES, Published
from tests.generation.test_chat import conversing
from tests.serving.test_app import PROMPT, SLOTS, TURNS, Served, wait_until

pytestmark = pytest.mark.slow

TEXTS, CHAT = "/v1/completions", "/v1/chat/completions"
OTHER, OWN = "sha256-other", "sha256-own"
NO_ID = "0" * 32
LONG = {"prompt": PROMPT, "max_tokens": 100, "temperature": 1}


class BatchServed(Served):
    """A server with a folder of batches."""

    def __init__(self, model: ComposedModel, folder: Path, api_key: str | None = None, **limits: Any):
        self.folder = folder / "batches"
        batches = Batches(BatchFolder(self.folder), OWN, at_once=SLOTS)
        super().__init__(model, folder / "ledger.jsonl", Limits(**limits), api_key, batches)

    def upload(self, data: bytes) -> str:
        """The id of a file."""
        answer = self.client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("../../in.jsonl", data)})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def make(self, data: bytes, endpoint: str = TEXTS, **more: Any) -> httpx.Response:
        """What making a batch of a file's lines is answered with."""
        asked = {"input_file_id": self.upload(data), "endpoint": endpoint, "completion_window": "24h", **more}
        answer: httpx.Response = self.client.post("/v1/batches", json=asked)
        return answer

    def begin(self, data: bytes, endpoint: str = TEXTS) -> str:
        """The id of a batch."""
        made = self.make(data, endpoint)
        assert made.status_code == 200, made.text
        return str(made.json()["id"])

    def look(self, number: str) -> dict[str, Any]:
        batch: dict[str, Any] = self.client.get(f"/v1/batches/{number}").json()
        return batch

    def finish(self, number: str) -> dict[str, Any]:
        """The batch once it has ended."""
        wait_until(lambda: self.look(number)["status"] in ("completed", "cancelled"), 120)
        return self.look(number)

    def results(self, file: str | None) -> dict[str, dict[str, Any]]:
        """The responses of a file of results, by the names of their lines."""
        if file is None:
            return {}
        answer = self.client.get(f"/v1/files/{file}/content")
        assert answer.status_code == 200, answer.text
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert {line["error"] for line in lines} <= {None}
        assert len({line["id"] for line in lines} | {line["response"]["request_id"] for line in lines}) == 2 * len(
            lines
        )
        named = {line["custom_id"]: line["response"] for line in lines}
        assert len(named) == len(lines), "a line is there twice"
        return named


@contextlib.contextmanager
def serving(model: ComposedModel, folder: Path, **more: Any) -> Iterator[BatchServed]:
    served = BatchServed(model, folder, **more)
    try:
        with served.client:
            yield served
    finally:
        served.writer.stop()


@pytest.fixture(scope="module")
def model(published: Published) -> ComposedModel:
    return conversing(published.model(published.lock("lab/gain", MODULES)))


@pytest.fixture(scope="module")
def served(model: ComposedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchServed]:
    with serving(model, tmp_path_factory.mktemp("batches"), upload_bytes=200_000) as served:
        yield served


def line(name: str, body: Any, url: str = TEXTS, **more: Any) -> bytes:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body, **more}).encode() + b"\n"


def what_was_written(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer but for its id and time, and for what an earlier one had read already."""
    answer["usage"].pop("prompt_tokens_details", None)
    return {name: value for name, value in answer.items() if name not in ("id", "created")}


COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": PROMPT, "max_tokens": 9, "temperature": 0},
    {"prompt": ["a", "b"], "n": 2, "temperature": 1, "seed": 5, "max_tokens": 6},
    {"prompt": list(PROMPT.encode()), "echo": True, "logprobs": 1, "max_tokens": 1},
    {"prompt": PROMPT, "max_tokens": 8, "price": 1e9, "lane": "batch", "model": "tiny"},
]
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": TURNS, "temperature": 0, "max_completion_tokens": 6},
    {"messages": TURNS, "temperature": 1, "seed": 3, "max_tokens": 5, "logprobs": True, "top_logprobs": 2},
]


@pytest.mark.parametrize(("endpoint", "bodies"), [(TEXTS, COMPLETIONS), (CHAT, CONVERSATIONS)])
def test_answers_are_those_of_single_requests(served: BatchServed, endpoint: str, bodies: list[dict[str, Any]]) -> None:
    data = b"\n".join(line(f"n{n}", body, endpoint) for n, body in enumerate(bodies))
    made = served.make(data, endpoint, metadata={"for": "a test"}).json()
    assert made["request_counts"] == {"total": len(bodies), "completed": 0, "failed": 0}
    assert (made["status"], made["output_file_id"], made["errors"]) == ("in_progress", None, None)
    batch = served.finish(made["id"])
    assert batch["request_counts"] == {"total": len(bodies), "completed": len(bodies), "failed": 0}
    assert (batch["status"], batch["error_file_id"]) == ("completed", None)
    assert (batch["endpoint"], batch["metadata"]) == (endpoint, {"for": "a test"})
    assert batch["created_at"] <= batch["in_progress_at"] <= batch["completed_at"]
    results = served.results(batch["output_file_id"])
    for number, body in enumerate(bodies):
        alone = served.client.post(endpoint, json=body)
        assert results[f"n{number}"]["status_code"] == 200
        assert what_was_written(results[f"n{number}"]["body"]) == what_was_written(alone.json())


def test_files_are_given_back_as_they_came(served: BatchServed) -> None:
    data = b"\xff\x00 anything\r\n"
    number = served.upload(data)
    assert served.client.get(f"/v1/files/{number}/content").content == data
    file = served.client.get(f"/v1/files/{number}").json()
    assert (file["object"], file["purpose"], file["bytes"]) == ("file", "batch", len(data))
    assert file["filename"] == "../../in.jsonl"
    assert {path.parent for path in served.folder.parent.rglob("*in.jsonl*")} == set()


GOOD = line("a", {"prompt": "a"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file has no lines"),
        (b"\n \n", "the file has no lines"),
        (GOOD + b"{", "line 2: the line is not JSON"),
        (GOOD + b"\n[]", "line 3: the line must be a JSON object"),
        (b"\xff", "line 1: the line is not UTF-8"),
        (b"[" * 15_000, "line 1: the line is nested too deeply"),
        (GOOD + GOOD, "line 2: its custom_id is that of line 1"),
        (line("", {}), "line 1: custom_id"),
        (line("a", {}, custom_id=7), "line 1: custom_id"),
        (line("a", {}, method="GET"), "line 1: method"),
        (line("a", "text"), "line 1: body"),
        (line("a", {}, price=1), "line 1: price is no field"),
        (line("a", {}, CHAT), f'line 1: its url is "{CHAT}", and the batch is one for {TEXTS}'),
        (GOOD + line("b", {}, "/v1/embeddings"), "line 2: its url is"),
        (b'{"custom_id": "a"}', "line 1: method: Field required"),
        (line("a", {"seed": float("nan")}), "line 1: the line has NaN"),
        (line("a", {"prompt": "\ud800"}), "line 1: the line: Invalid JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_line_is_named_when_the_batch_is_made(served: BatchServed, data: bytes, message: str) -> None:
    before = served.client.get("/v1/batches").json()["data"]
    answer = served.make(data)
    assert answer.status_code == 400, answer.text
    said = answer.json()["error"]["message"]
    assert message in said
    assert "\n" not in said
    assert served.client.get("/v1/batches").json()["data"] == before


def test_too_long_a_line_and_too_many_are_named(served: BatchServed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "MOST_LINE_BYTES", 1000)
    answer = served.make(GOOD + line("b", {"prompt": "b" * 2000}))
    assert (answer.status_code, answer.json()["error"]["message"].split(";")[0]) == (
        400,
        "line 2 has more than 1,000 bytes",
    )
    monkeypatch.setattr(batch_files, "MOST_LINES", 2)
    answer = served.make(GOOD + line("b", {}) + line("c", {}))
    assert (answer.status_code, answer.json()["error"]["message"].split(";")[0]) == (
        400,
        "line 3: a batch has 2 lines at most",
    )


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"metadata": {"a": 1}}, 400, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "metadata"),
        ({"output_expires_after": {}}, 400, "output_expires_after is no field"),
        ({"input_file_id": f"file-{NO_ID}"}, 404, "there is no file"),
        ({"input_file_id": "../../../etc/passwd"}, 404, "there is no file"),
        ({"input_file_id": 7}, 400, "input_file_id"),
    ],
)
def test_a_bad_batch_is_a_status_and_one_sentence(
    served: BatchServed, more: dict[str, Any], status: int, message: str
) -> None:
    answer = served.make(GOOD, **more) if "endpoint" not in more else served.make(GOOD, more["endpoint"])
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("form", "status", "message"),
    [
        ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"a" * 300_000)}}, 413, "more than 200,000 bytes"),
        ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a", b"")}}, 400, 'purpose must be "batch"'),
        ({"files": {"file": ("a", b"")}}, 400, 'purpose must be "batch"'),
        ({"data": {"purpose": "batch"}, "files": {"other": ("a", b"")}}, 400, "other is no field"),
        ({"data": {"purpose": "batch", "days": "1"}, "files": {"file": ("a", b"")}}, 400, "days is no field"),
        ({"data": {"purpose": "b" * 2000}, "files": {"file": ("a", b"")}}, 400, "the form cannot be read"),
        ({"data": {"purpose": "batch"}, "files": [("file", ("a", b"")), ("file", ("b", b""))]}, 400, "cannot be read"),
        ({"json": {"purpose": "batch"}}, 400, "comes as multipart/form-data"),
        ({"content": b""}, 400, "comes as multipart/form-data"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "the form cannot be read"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, 400, "cannot be read"),
        ({"content": b"--a\r\n\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, 400, "be read"),
        ({"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, 400, "purpose must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_upload_is_a_status_and_one_sentence(
    served: BatchServed, form: dict[str, Any], status: int, message: str
) -> None:
    answer = served.client.post("/v1/files", **form)
    assert answer.status_code == status, answer.text
    said = answer.json()["error"]["message"]
    assert message in said
    assert "\n" not in said


NO_IDS = ["..", "%2e%2e", "..%2fledger", "file-*", "file-" + "A" * 32]


@pytest.mark.parametrize("number", [*NO_IDS, f"file-{NO_ID}", f"batch_{NO_ID}", f"file-{NO_ID}%0a"])
def test_no_id_leads_out_of_the_folder(served: BatchServed, number: str) -> None:
    (served.folder.parent / "ledger.json").write_text("{}")
    (served.folder.parent / "ledger.jsonl").touch()
    served.folder.mkdir(exist_ok=True)
    for path in (f"/v1/files/{number}", f"/v1/files/{number}/content", f"/v1/batches/{number}"):
        assert served.client.get(path).status_code == 404
    assert served.client.post(f"/v1/batches/{number}/cancel").status_code in (404, 405)
    folder = BatchFolder(served.folder)
    for found in (folder.file, folder.content, folder.batch):
        with pytest.raises(LabError, match="there is no"):
            found(number)
        with pytest.raises(LabError, match="there is no"):
            found("../ledger")


def test_a_refused_body_is_a_line_of_the_error_file_and_the_batch_goes_on(served: BatchServed) -> None:
    bad: dict[str, tuple[dict[str, Any], int, str]] = {
        "field": ({"prise": 1}, 400, "prise is no field"),
        "value": ({"max_tokens": 0}, 400, "max_tokens"),
        "room": ({"prompt": "a" * 200}, 400, "there is room for 128"),
        "module": ({"without": ["north/cod"]}, 404, 'cannot leave out "north/cod"'),
        "model": ({"model": "gpt-9"}, 404, 'there is no model "gpt-9"'),
        "stream": ({"stream": True}, 400, "leave stream out"),
        "lane": ({"lane": "interactive"}, 400, "leave lane out"),
    }
    lines = [line(name, body) for name, (body, _, _) in bad.items()]
    good = line("good", {"prompt": PROMPT, "max_tokens": 2})
    batch = served.finish(served.begin(b"".join([*lines[:3], good, *lines[3:]])))
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": len(bad) + 1, "completed": 1, "failed": len(bad)}
    assert set(served.results(batch["output_file_id"])) == {"good"}
    errors = served.results(batch["error_file_id"])
    assert {name: response["status_code"] for name, response in errors.items()} == {
        name: status for name, (_, status, _) in bad.items()
    }
    for name, (_, status, message) in bad.items():
        assert message in errors[name]["body"]["error"]["message"]
        assert errors[name]["body"]["error"]["code"] == status
    assert served.client.get(f"/v1/files/{batch['error_file_id']}").json()["purpose"] == "batch_output"


def test_conversations_without_a_template_are_refused_line_by_line(published: Published, tmp_path: Path) -> None:
    with serving(published.model(published.lock("lab/gain", MODULES)), tmp_path) as served:
        batch = served.finish(served.begin(line("a", CONVERSATIONS[0], CHAT), CHAT))
        assert served.results(batch["error_file_id"])["a"]["status_code"] == 409


def test_a_mistake_of_ours_ends_one_line(served: BatchServed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_lab.serving.answers.usage", lambda *_: 1 / 0)
    batch = served.finish(served.begin(line("a", {"prompt": "a", "max_tokens": 1})))
    (error,) = served.results(batch["error_file_id"]).values()
    assert (error["status_code"], error["body"]["error"]["type"]) == (500, "ZeroDivisionError")


def test_a_cancelled_batch_keeps_what_is_done(served: BatchServed) -> None:
    number = served.begin(b"".join(line(f"n{n}", {**LONG, "seed": n}) for n in range(400)))
    wait_until(lambda: served.look(number)["request_counts"]["completed"] >= 2)
    given_up = served.ledger.read_text().count('"cancelled"')
    answer = served.client.post(f"/v1/batches/{number}/cancel").json()
    assert answer["status"] == "cancelling"
    assert answer["cancelling_at"] >= answer["created_at"]
    batch = served.finish(number)
    assert batch["status"] == "cancelled"
    assert (batch["completed_at"], batch["cancelled_at"] >= batch["cancelling_at"]) == (None, True)
    assert 2 <= batch["request_counts"]["completed"] < 400
    assert len(served.results(batch["output_file_id"])) == batch["request_counts"]["completed"]
    wait_until(lambda: served.writer.texts == 0)
    wait_until(lambda: served.ledger.read_text().count('"cancelled"') > given_up)
    answer = served.client.post(f"/v1/batches/{number}/cancel")
    assert (answer.status_code, "is cancelled" in answer.json()["error"]["message"]) == (409, True)


def test_lists_go_from_the_newest_on(served: BatchServed) -> None:
    made = {served.finish(served.begin(GOOD))["id"] for _ in range(3)}
    everything = served.client.get("/v1/batches?limit=100").json()
    ids = [batch["id"] for batch in everything["data"]]
    assert made <= set(ids)
    assert [batch["created_at"] for batch in everything["data"]] == sorted(
        (batch["created_at"] for batch in everything["data"]), reverse=True
    )
    assert (everything["first_id"], everything["last_id"], everything["has_more"]) == (ids[0], ids[-1], False)
    page = served.client.get(f"/v1/batches?limit=2&after={ids[0]}").json()
    assert [batch["id"] for batch in page["data"]] == ids[1:3]
    assert page["has_more"] is (len(ids) > 3)
    for query, status in (("limit=0", 400), ("limit=x", 400), ("limit=1000", 400), ("after=batch_0", 404)):
        assert served.client.get(f"/v1/batches?{query}").status_code == status


def test_a_key_is_asked_for_on_every_path(model: ComposedModel, tmp_path: Path) -> None:
    with serving(model, tmp_path, api_key="secret") as served:
        for method, path in (
            ("POST", "/v1/files"),
            ("GET", f"/v1/files/file-{NO_ID}"),
            ("GET", f"/v1/files/file-{NO_ID}/content"),
            ("POST", "/v1/batches"),
            ("GET", "/v1/batches"),
            ("GET", f"/v1/batches/batch_{NO_ID}"),
            ("POST", f"/v1/batches/batch_{NO_ID}/cancel"),
        ):
            assert served.client.request(method, path).status_code == 401, path


def test_lines_have_the_batch_lane_and_no_deadline(
    model: ComposedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(model, tmp_path, answer_seconds=1e-9) as served:
        submit, lanes = served.engine.submit, []

        def watch(request: Request) -> int:
            lanes.append(request.lane)
            return submit(request)

        monkeypatch.setattr(served.engine, "submit", watch)
        batch = served.finish(served.begin(line("a", {**LONG, "n": 3})))
        assert (batch["request_counts"]["completed"], lanes) == (1, ["batch"] * 3)
        assert served.post().status_code == 408
        assert "moe_lab_first_token_seconds_count 0.0" in served.client.get("/metrics").text


def test_clients_are_never_too_many_because_of_a_batch(served: BatchServed) -> None:
    number = served.begin(b"".join(line(f"n{n}", {**LONG, "n": 8, "seed": n}) for n in range(100)))
    wait_until(lambda: served.writer.texts >= SLOTS * 8)

    def ask(lane: str) -> int:
        return served.post(max_tokens=3, lane=lane).status_code

    with ThreadPoolExecutor(SLOTS + 2) as clients:
        assert list(clients.map(ask, ["interactive", "batch"] * 5)) == [200] * 10
        assert served.client.post(f"/v1/batches/{number}/cancel").status_code == 200
    served.finish(number)


def test_each_lane_has_a_limit_of_its_own(served: BatchServed, monkeypatch: pytest.MonkeyPatch) -> None:
    most, step, everybody_there = SLOTS + 2, served.engine.step, threading.Event()
    monkeypatch.setattr(served.engine, "step", lambda: step() if everybody_there.wait(60) else [])

    def ask(lane: str) -> int:
        return served.post(max_tokens=2, lane=lane).status_code

    lanes = ["interactive", "batch"] * (most + 3)
    with ThreadPoolExecutor(len(lanes)) as clients:
        asked = [clients.submit(ask, lane) for lane in lanes]
        wait_until(lambda: sum(one.done() for one in asked) == 6)
        everybody_there.set()
        statuses = sorted((lane, one.result()) for lane, one in zip(lanes, asked, strict=True))
    assert statuses == [(lane, status) for lane in ("batch", "interactive") for status in [200] * most + [429] * 3]


def test_at_most_as_many_lines_as_slots_are_under_way(tmp_path: Path) -> None:
    asyncio.run(_work_through(tmp_path))


async def _work_through(path: Path) -> None:
    folder, now, most = BatchFolder(path), 0, 0

    async def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(0.001)
        now -= 1
        return 200, {}

    batches = Batches(folder, OWN, at_once=3)
    batches.start(answer)
    made = [await batches.create(_upload(folder, 20)) for _ in range(2)]
    while not all(batches.get(batch["id"])["status"] == "completed" for batch in made):
        await asyncio.sleep(0.01)
    await batches.stop()
    assert most == 3


def _upload(folder: BatchFolder, lines: int) -> BatchBody:
    data = b"".join(line(f"n{n}", {"prompt": "a", "max_tokens": 2, "seed": n}) for n in range(lines))
    file = folder.keep_upload(io.BytesIO(data), "in.jsonl")
    return BatchBody(input_file_id=file.id, endpoint=TEXTS, completion_window="24h")


class Half:
    """A batch of ten lines that a kill interrupted: four results, one torn, one of them in the error file."""

    def __init__(self, path: Path, composition: str = OWN):
        self.folder = BatchFolder(path)
        self.batch = self.folder.make(_upload(self.folder, 10), composition)
        for name in ("n3", "n0", "n7"):
            self.folder.append(self.batch, _kept(name), failed=False)
        self.folder.append(self.batch, _kept("n5"), failed=True)
        self.output, self.error = (path / f"{file}.jsonl" for file in (self.batch.output_file, self.batch.error_file))
        with self.output.open("ab") as file:
            file.write(json.dumps(_kept("n1")).encode()[:-9])


def _kept(name: str) -> dict[str, Any]:
    response = {"status_code": 200, "request_id": f"kept-{name}", "body": {}}
    return {"id": f"id-{name}", "custom_id": name, "response": response, "error": None}


def test_after_a_kill_only_what_has_no_result_is_asked_again(model: ComposedModel, tmp_path: Path) -> None:
    half = Half(tmp_path / "batches")
    with serving(model, tmp_path) as served:
        batch = served.finish(half.batch.id)
        results, errors = served.results(batch["output_file_id"]), served.results(batch["error_file_id"])
    assert batch["request_counts"] == {"total": 10, "completed": 9, "failed": 1}
    assert set(results) == {f"n{n}" for n in range(10) if n != 5}
    assert set(errors) == {"n5"}
    kept = {name for name, response in {**results, **errors}.items() if response["request_id"] == f"kept-{name}"}
    assert kept == {"n0", "n3", "n5", "n7"}
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 6
    assert {path.suffix for path in (tmp_path / "batches").iterdir()} == {".json", ".jsonl"}


def test_a_stopped_server_leaves_a_batch_that_goes_on(model: ComposedModel, tmp_path: Path) -> None:
    with serving(model, tmp_path) as served:
        number = served.begin(b"".join(line(f"n{n}", {**LONG, "seed": n}) for n in range(60)))
        wait_until(lambda: served.look(number)["request_counts"]["completed"] >= 2)
    stored = json.loads((served.folder / f"{number}.json").read_text())
    assert (stored["status"], stored["ended_at"]) == ("in_progress", None)
    ended = sum('"cancelled"' not in entry for entry in (tmp_path / "ledger.jsonl").read_text().splitlines())
    assert 2 <= ended < 50
    with serving(model, tmp_path) as served:
        batch = served.finish(number)
        assert len(served.results(batch["output_file_id"])) == 60
    entries = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert sum('"cancelled"' not in entry for entry in entries) == 60


def test_a_kill_while_a_batch_is_cancelled_ends_it(model: ComposedModel, tmp_path: Path) -> None:
    half = Half(tmp_path / "batches", OTHER)
    half.folder.keep(half.batch.model_copy(update={"status": "cancelling", "cancelling_at": int(time.time())}))
    with serving(model, tmp_path) as served:
        batch = served.finish(half.batch.id)
        assert (batch["status"], batch["request_counts"]["completed"]) == ("cancelled", 3)
        assert set(served.results(batch["output_file_id"])) == {"n3", "n0", "n7"}


def test_a_batch_of_another_composition_waits_and_can_be_cancelled(model: ComposedModel, tmp_path: Path) -> None:
    half = Half(tmp_path / "batches", OTHER)
    with serving(model, tmp_path) as served:
        batch = served.look(half.batch.id)
        assert batch["status"] == "in_progress"
        assert "another composition" in batch["errors"]["data"][0]["message"]
        assert batch["request_counts"] == {"total": 10, "completed": 3, "failed": 1}
        assert served.client.post(f"/v1/batches/{half.batch.id}/cancel").json()["status"] == "cancelling"
        assert served.finish(half.batch.id)["status"] == "cancelled"


def test_a_batch_is_one_server_s(model: ComposedModel, tmp_path: Path) -> None:
    half = Half(tmp_path / "batches")
    right = half.folder.claim(half.batch)
    assert right is not None
    with serving(model, tmp_path) as served:
        batch = served.look(half.batch.id)
        assert (batch["status"], batch["errors"]) == ("in_progress", None)
        answer = served.client.post(f"/v1/batches/{half.batch.id}/cancel")
        assert (answer.status_code, "another server works on" in answer.json()["error"]["message"]) == (409, True)
    right.close()
    assert half.folder.batch(half.batch.id).status == "in_progress"


def test_a_full_disk_is_told_and_waited_for(
    served: BatchServed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_lab.serving.batches.PAUSE_SECONDS", 0.05)
    append, full = BatchFolder.append, threading.Event()
    full.set()

    def fail(self: BatchFolder, batch: Batch, result: dict[str, Any], *, failed: bool) -> None:
        if full.is_set():
            with (self._path / f"{batch.output_file}.jsonl").open("ab") as file:
                file.write(b'{"id": "torn')
            raise OSError(28, "No space left on device")
        append(self, batch, result, failed=failed)

    monkeypatch.setattr(BatchFolder, "append", fail)
    number = served.begin(line("a", {"prompt": "a", "max_tokens": 1}) + line("b", {"prompt": "a", "max_tokens": 1}))
    wait_until(lambda: served.look(number)["errors"] is not None)
    assert "No space left on device" in served.look(number)["errors"]["data"][0]["message"]
    full.clear()
    batch = served.finish(number)
    assert set(served.results(batch["output_file_id"])) == {"a", "b"}


def test_an_upload_that_a_full_disk_stops_is_said(served: BatchServed, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fail)
    answer = served.client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", GOOD)})
    assert (answer.status_code, "disk full" in answer.json()["error"]["message"]) == (503, True)
    assert not list(served.folder.glob(".*.tmp"))


def test_a_model_that_fails_leaves_the_batch_to_the_next_start(model: ComposedModel, tmp_path: Path) -> None:
    threading.excepthook, usual = (lambda _: None), threading.excepthook
    try:
        with serving(model, tmp_path) as served:
            served.engine.step = lambda: 1 / 0  # type: ignore[assignment,method-assign,return-value]
            number = served.begin(GOOD)
            wait_until(lambda: served.look(number)["errors"] is not None)
            assert "the model failed while it wrote" in served.look(number)["errors"]["data"][0]["message"]
    finally:
        threading.excepthook = usual
    with serving(model, tmp_path) as served:
        assert served.finish(number)["request_counts"]["completed"] == 1


def test_a_damaged_state_is_said_and_stops_nothing(model: ComposedModel, tmp_path: Path) -> None:
    half = Half(tmp_path / "batches")
    state = tmp_path / "batches" / f"{half.batch.id}.json"
    state.write_text(state.read_text()[:40])
    with pytest.raises(Damaged, match="not as it was written"):
        half.folder.batch(half.batch.id)
    with serving(model, tmp_path) as served:
        assert served.client.get(f"/v1/batches/{half.batch.id}").status_code == 500
        assert served.client.get("/v1/batches").json()["data"] == []


def test_openai_s_own_client_runs_a_batch(served: BatchServed) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=served.client)
    bodies = [{"prompt": PROMPT, "max_tokens": 3}, {"prompt": PROMPT, "max_tokens": 0}]
    data = b"".join(line(str(n), body) for n, body in enumerate(bodies))
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert client.files.retrieve(file.id).bytes == len(data)
    made = client.batches.create(input_file_id=file.id, endpoint=TEXTS, completion_window="24h", metadata={"a": "b"})
    served.finish(made.id)
    batch = client.batches.retrieve(made.id)
    assert (batch.status, batch.request_counts.total, batch.metadata) == ("completed", 2, {"a": "b"})
    (answered,) = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    assert answered["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert "max_tokens" in client.files.content(batch.error_file_id).text
    assert made.id in [one.id for one in client.batches.list(limit=2)]
    with pytest.raises(openai.ConflictError, match="is completed"):
        client.batches.cancel(made.id)
