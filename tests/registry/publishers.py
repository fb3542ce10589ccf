"""A process that forks publishers and others: one JSON command a line in, one JSON answer a line out.

`{"registry", "jobs": [{"seed", "version", "blocks", "key", "kill_at", "kill_after", "no_locks"}]}`: every job is a
process; all start at once. `key` is the number of a test key, `kill_at` that of a disk operation, `kill_after` is in
seconds; with `no_locks` file locks do nothing, as on several cluster file systems. Answers come in the order of the
jobs; that of a job that was killed is null. A job with a "call" does that instead, see CALLS.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tensorstore  # noqa: E402, F401  before the forks, each of which would need long for it

import moe_lab.registry.stores.local as store_module  # noqa: E402
import moe_lab.registry.stores.sweep as sweep_module  # noqa: E402
from moe_lab.errors import LabError  # noqa: E402
from moe_lab.registry import Registry  # noqa: E402
from moe_lab.registry.keys import is_valid  # noqa: E402
from tests.registry.scenario import BLOCKS, ShakyOs, dies, fields, owner_key, tensors  # noqa: E402

DISK_MODULES = (store_module, sweep_module)


def publish(registry: str, job: dict[str, Any]) -> dict[str, Any]:
    content = tensors(job["seed"], job.get("blocks", 4))
    key = owner_key(job["key"]) if "key" in job else None
    done = Registry(registry, key=key).publish("team", "part", job["version"], fields(), content, BLOCKS)
    return {"version": done.ref.version, "digest": done.digest, "created": done.created}


def retire(registry: str, job: dict[str, Any]) -> dict[str, Any]:
    return {"changed": Registry(registry).retire("team/part@1", "wrong").changed}


def unretire(registry: str, job: dict[str, Any]) -> dict[str, Any]:
    return {"changed": Registry(registry).unretire("team/part@1").changed}


def gc(registry: str, job: dict[str, Any]) -> dict[str, Any]:
    return {"files": list(Registry(registry).gc(job.get("grace", 0)).files)}


def mirror(registry: str, job: dict[str, Any]) -> dict[str, Any]:
    done = Registry(registry).mirror(job["target"])
    return {"copied": list(done.copied), "problems": list(done.problems)}


def gc_often(registry: str, job: dict[str, Any]) -> dict[str, Any]:
    """Collects without any grace again and again; it may give up, and says how often it did.

    Beside publishers that have not left anything yet it goes on until they have, or for a minute.
    """
    deleted = stopped = rounds = 0
    end = time.monotonic() + 60
    while rounds < job["times"] or (not deleted and time.monotonic() < end):
        rounds += 1
        try:
            deleted += len(Registry(registry).gc(0).files)
        except LabError:
            stopped += 1
    return {"deleted": deleted, "stopped": stopped}


def publish_often(registry: str, job: dict[str, Any]) -> dict[str, Any]:
    """Publishes content that overlaps with the others', and reads each artifact back at once."""
    for number in range(job["times"]):
        content = tensors(number % 3, 2 + (job["seed"] + number) % 5)
        opened = Registry(registry)
        done = opened.publish("team", f"part{job['seed']}", str(number + 1), fields(), content, BLOCKS)
        require_same_soon(opened, done.digest, content)
        garbage = opened.publish(
            "team", f"gone{job['seed']}", str(number + 1), fields(), tensors(number + 9, 6), BLOCKS
        )
        (Path(registry) / "refs/team" / garbage.ref.name / str(number + 1)).unlink()
    return {}


def read_often(registry: str, job: dict[str, Any]) -> dict[str, Any]:
    for _ in range(job["times"]):
        require_same(Registry(registry), "team/part@1", tensors(job["seed"]))
    return {}


def require_same_soon(opened: Registry, ref: str, content: dict[str, Any]) -> None:
    """Without any grace, a part that is older than its reference may be set aside for a moment; never changed."""
    for _ in range(500):
        try:
            return require_same(opened, ref, content)
        except LabError as error:
            if "is missing" not in str(error):
                raise
            time.sleep(0.01)
    return require_same(opened, ref, content)


def require_same(opened: Registry, ref: str, content: dict[str, Any]) -> None:
    back = opened.tensors(ref)
    assert back.keys() == content.keys()
    assert all(back[name].tobytes() == content[name].tobytes() for name in content)


CALLS: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
    "publish": publish,
    "retire": retire,
    "unretire": unretire,
    "gc": gc,
    "mirror": mirror,
    "gc_often": gc_often,
    "publish_often": publish_often,
    "read_often": read_often,
}


def answer_of(registry: str, job: dict[str, Any]) -> dict[str, Any]:
    shaky = ShakyOs(job.get("kill_at", -1), dies)
    for module in DISK_MODULES:
        module.os = shaky  # type: ignore[attr-defined]
    if job.get("no_locks"):
        fcntl.flock = fcntl.lockf = lambda *_: None  # type: ignore[assignment]
    try:
        done = CALLS[job.get("call", "publish")](registry, job)
    except LabError as error:
        done = {"error": str(error)}
    return {**done, "operations": len(shaky.trace)}


def start(registry: str, job: dict[str, Any], gate: int) -> tuple[int, int]:
    """Forks a publisher that waits for the gate to close; returns its pid and the pipe with its answer."""
    answer, answered = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(gate, 1)
        os.write(answered, json.dumps(answer_of(registry, job)).encode())
        os._exit(0)
    os.close(answered)
    return pid, answer


def run(registry: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    gate, opener = os.pipe()
    # Children inherit the write end as well, so the gate opens by bytes, one for each of them.
    started = [start(registry, job, gate) for job in jobs]
    os.write(opener, b"x" * len(jobs))
    answers: list[dict[str, Any] | None] = []
    for (pid, answer), job in zip(started, jobs, strict=True):
        if "kill_after" in job:
            select.select([answer], [], [], job["kill_after"])
            os.kill(pid, signal.SIGKILL)
        with os.fdopen(answer, "rb") as pipe:
            data = pipe.read()
        os.waitpid(pid, 0)
        answers.append(json.loads(data) if data else None)
    os.close(gate)
    os.close(opener)
    return answers


def main() -> None:
    # Loads what signing needs here, once, and not in every process that is forked.
    assert not is_valid(owner_key(0).public, b"", b"")
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(run(command["registry"], command["jobs"])), flush=True)


if __name__ == "__main__":
    main()
