"""`moe-lab serve` as a process: real clients, half requests, SIGTERM and `kill -9` in the middle of load."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from moe_lab.serving.usage import sum_use
from tests.compose.published import MODULES, Published
from tests.generation.test_command import COMPOSITION

pytestmark = pytest.mark.slow
BODY = {"prompt": "for i in", "max_tokens": 40, "temperature": 1, "seed": 1}


@pytest.fixture(scope="module")
def lab(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lab = Path(shutil.copytree(published.lab.root, tmp_path_factory.mktemp("serving") / "lab"))
    (lab / "configs" / "tiny.yaml").write_text(COMPOSITION.format(modules=", ".join(MODULES), router="lab/gain"))
    return lab


class Process:
    """A server of its own, on a free port."""

    def __init__(self, lab: Path):
        command = [sys.executable, "-m", "moe_lab", "--lab", lab, "serve", "tiny", "--port", "0"]
        sizes = ["--slots", "2", "--room", "128"]
        self.process = subprocess.Popen([*command, *sizes], stderr=subprocess.PIPE, text=True, env={**os.environ})
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.match(r"listening on (http://127\.0\.0\.1:(\d+))", line):
                self.url, self.port = found[1], int(found[2])
                return
        raise AssertionError("".join(self.said))

    def end(self, number: int) -> tuple[int, str]:
        """Its exit code, and what it still said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextlib.contextmanager
def serving(lab: Path) -> Iterator[Process]:
    server = Process(lab)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="module")
def server(lab: Path) -> Iterator[Process]:
    with serving(lab) as server:
        yield server


def test_openai_s_own_client_is_served(server: Process) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    (model,) = client.models.list().data
    asked: dict[str, Any] = {"model": model.id, "prompt": "for i in", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2)
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.tokens)
    parts = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(choice.text for part in parts for choice in part.choices) == whole.choices[0].text
    dear = client.completions.create(**asked, extra_body={"price": 1e9})
    assert dear.usage.moe_lab["receipts"][0]["modules"] == []
    with pytest.raises(openai.NotFoundError, match="this server has tiny"):
        client.completions.create(model="other", prompt="a")


def test_broken_and_slow_connections_leave_it_serving(server: Process) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n"
    sent = [b"", b"\x00\xff\x16\x03", b"GET / HT", head, head + b'{"prompt": "a', b"GET /" + b"a" * 100_000, head[:20]]
    held = []
    for data in sent:
        connection = socket.create_connection(("127.0.0.1", server.port))
        with contextlib.suppress(OSError):
            connection.sendall(data)
        held.append(connection)
    assert httpx.post(f"{server.url}/v1/completions", json=BODY, timeout=60).status_code == 200
    for connection in held:
        connection.close()
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"


def test_a_client_that_goes_away_gives_its_slot_back(server: Process) -> None:
    for stream in (False, True):
        with contextlib.suppress(httpx.TimeoutException):
            httpx.post(f"{server.url}/v1/completions", json={**BODY, "max_tokens": 110, "stream": stream}, timeout=0.05)
    deadline = time.monotonic() + 30
    while httpx.get(f"{server.url}/health").json()["texts"]:
        assert time.monotonic() < deadline, "its texts are still written"
        time.sleep(0.05)


def test_sigterm_finishes_what_is_being_written(lab: Path) -> None:
    with serving(lab) as server:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{server.url}/v1/completions", json={**BODY, "max_tokens": 100}, timeout=60))

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        while httpx.get(f"{server.url}/health").json()["texts"] < 3 and not answers:
            time.sleep(0.005)
        code, said = server.end(signal.SIGTERM)
        for thread in asking:
            thread.join()
    assert (code, [answer.status_code for answer in answers]) == (0, [200] * 3)
    assert "everything that was being written is finished" in said


def test_after_kill_9_in_the_middle_of_load_the_ledger_is_whole(lab: Path) -> None:
    ledger = lab / "runs" / "usage" / "ledger.jsonl"
    answered: list[int] = []
    before = sum_use(ledger, "day")[0]
    with serving(lab) as server:

        def ask(seed: int) -> None:
            with contextlib.suppress(httpx.HTTPError):
                body = {**BODY, "max_tokens": 1 + seed % 9, "seed": seed}
                while True:
                    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
                    answered.append(answer.json()["usage"]["moe_lab"]["multiply_adds"])

        asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in asking:
            thread.start()
        while len(answered) < 12:
            time.sleep(0.01)
        server.end(signal.SIGKILL)
        for thread in asking:
            thread.join()
    (after,), torn = sum_use(ledger, "day")
    texts = after.texts - sum(use.texts for use in before)
    assert torn == 0
    assert len(answered) <= texts <= len(answered) + 4, "no answer is missing; at most those under way are more"
    ids = [json.loads(line)["id"] for line in ledger.read_text().splitlines()]
    assert len(set(ids)) == len(ids)


def test_a_batch_goes_on_after_sigterm_and_after_kill_9(lab: Path) -> None:
    ledger, lines = lab / "runs" / "usage" / "ledger.jsonl", 60
    asked = [{**BODY, "max_tokens": 100, "seed": seed} for seed in range(lines)]
    data = "\n".join(
        json.dumps({"custom_id": f"n{n}", "method": "POST", "url": "/v1/completions", "body": body})
        for n, body in enumerate(asked)
    )

    def look(server: Process, number: str) -> dict[str, Any]:
        batch: dict[str, Any] = httpx.get(f"{server.url}/v1/batches/{number}").json()
        return batch

    def wait(server: Process, number: str, completed: int) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while (batch := look(server, number))["request_counts"]["completed"] < completed:
            assert time.monotonic() < deadline, batch
            time.sleep(0.01)
        return batch

    before = len(ledger.read_text().splitlines()) if ledger.exists() else 0
    with serving(lab) as server:
        file = {"file": ("in.jsonl", data.encode())}
        sent = httpx.post(f"{server.url}/v1/files", data={"purpose": "batch"}, files=file).json()["id"]
        asking = {"input_file_id": sent, "endpoint": "/v1/completions", "completion_window": "24h"}
        number = httpx.post(f"{server.url}/v1/batches", json=asking).json()["id"]
        wait(server, number, 3)
        code, said = server.end(signal.SIGTERM)
    assert (code, "batches that are not finished go on at the next start" in said) == (0, True)
    with serving(lab) as server:
        kept = look(server, number)["request_counts"]["completed"]
        wait(server, number, kept + 5)
        server.end(signal.SIGKILL)
    with serving(lab) as server:
        wait(server, number, lines)
        while (batch := look(server, number))["status"] == "in_progress":
            time.sleep(0.01)
        results = httpx.get(f"{server.url}/v1/files/{batch['output_file_id']}/content").text.splitlines()
        alone = httpx.post(f"{server.url}/v1/completions", json=asked[-1], timeout=60).json()
    answers = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, results)}
    assert (batch["status"], len(results), set(answers)) == ("completed", lines, {f"n{n}" for n in range(lines)})
    assert answers[f"n{lines - 1}"]["choices"] == alone["choices"]
    written = [json.loads(line)["end"] for line in ledger.read_text().splitlines()[before:]]
    # A text may have ended without its result being kept, where the kill came between the two.
    assert lines + 1 <= len(written) - written.count("cancelled") <= lines + 1 + 2 * 2


def test_other_addresses_want_a_key_and_a_taken_port_is_named(lab: Path, server: Process) -> None:
    command = [sys.executable, "-m", "moe_lab", "--lab", str(lab), "serve", "tiny"]
    clean = {name: value for name, value in os.environ.items() if name != "MOE_LAB_API_KEY"}
    open_to_all = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, env=clean, timeout=60)
    assert open_to_all.returncode == 2
    assert "set MOE_LAB_API_KEY" in open_to_all.stderr
    taken = subprocess.run(
        [*command, "--port", str(server.port), "--slots", "2", "--room", "128"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert taken.returncode == 2
    assert f"cannot listen on 127.0.0.1:{server.port}" in taken.stderr.splitlines()[-1]
