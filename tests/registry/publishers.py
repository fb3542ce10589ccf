"""A process that forks publishers: one JSON command a line in, one JSON answer a line out.

`{"registry", "jobs": [{"seed", "version", "blocks", "kill_at", "kill_after", "no_locks"}]}`: every job is a
process; all start at once. `kill_at` is the number of a disk operation, `kill_after` is in seconds; with
`no_locks` file locks do nothing, as on several cluster file systems. Answers come in the order of the jobs;
that of a job that was killed is null.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import moe_lab.registry.stores.local as store_module  # noqa: E402
from moe_lab.errors import LabError  # noqa: E402
from moe_lab.registry import Registry  # noqa: E402
from tests.registry.scenario import BLOCKS, ShakyOs, dies, fields, tensors  # noqa: E402


def publish(registry: str, job: dict[str, Any]) -> dict[str, Any]:
    shaky = ShakyOs(job.get("kill_at", -1), dies)
    store_module.os = shaky  # type: ignore[assignment]
    if job.get("no_locks"):
        fcntl.flock = fcntl.lockf = lambda *_: None  # type: ignore[assignment]
    content = tensors(job["seed"], job.get("blocks", 4))
    try:
        done = Registry(registry).publish("team", "part", job["version"], fields(), content, BLOCKS)
    except LabError as error:
        return {"error": str(error), "operations": len(shaky.trace)}
    return {
        "version": done.ref.version,
        "digest": done.digest,
        "created": done.created,
        "operations": len(shaky.trace),
    }


def start(registry: str, job: dict[str, Any], gate: int) -> tuple[int, int]:
    """Forks a publisher that waits for the gate to close; returns its pid and the pipe with its answer."""
    answer, answered = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(gate, 1)
        os.write(answered, json.dumps(publish(registry, job)).encode())
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
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(run(command["registry"], command["jobs"])), flush=True)


if __name__ == "__main__":
    main()
