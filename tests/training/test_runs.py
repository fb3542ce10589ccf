from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from moe_lab.config import load_yaml
from moe_lab.errors import Interrupted, LabError
from moe_lab.training import Run, open_run, read_ledger
from moe_lab.training.provenance import git_state

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"kind": "trunk", "train": {"steps": 3, "learning_rate": 1e-4}, "title": "on"}
INPUTS = {"data": "sha256-00"}


def begin(runs: Path, **changes: Any) -> Run:
    return open_run(runs, **{"kind": "trunk", "name": "team/tiny:64", "resolved": CONFIG, "inputs": INPUTS} | changes)


def test_the_folder_is_named_by_kind_name_and_fingerprint_and_describes_itself(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        assert run.path.parent == tmp_path
        assert run.path.name == f"trunk-team-tiny-64-{run.fingerprint[:8]}"
        assert load_yaml(run.path / "config.yaml") == CONFIG
        environment = json.loads((run.path / "environment.json").read_text())
        for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
            assert environment["packages"][package] == importlib.metadata.version(package)
        assert "moe-lab" in environment["packages"]
        assert environment["argv"] == sys.argv
        assert environment["cpu_count"] == os.cpu_count()
        described = json.loads((run.path / "run.json").read_text())
        assert (described["fingerprint"], described["inputs"]) == (run.fingerprint, INPUTS)
        run.finish({})


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "module"},
        {"name": "team-tiny:64"},
        {"resolved": CONFIG | {"title": "off"}},
        {"inputs": {"data": "1"}},
    ],
)
def test_any_other_config_or_input_is_another_run(tmp_path: Path, change: dict[str, Any]) -> None:
    with begin(tmp_path) as one, begin(tmp_path, **change) as other:
        assert one.path != other.path
        one.finish({})
        other.finish({})


def test_a_finished_run_answers_with_its_result_and_records_nothing_more(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        assert run.done is None
        run.finish({"ref": "team/tiny@1"})
    ledger = (tmp_path / "ledger.jsonl").read_bytes()
    with begin(tmp_path) as again, begin(tmp_path) as and_again:
        assert again.done == and_again.done == {"ref": "team/tiny@1"}
    assert (tmp_path / "ledger.jsonl").read_bytes() == ledger
    assert read_ledger(tmp_path)[0].status == "finished"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LabError("the disk\nis full"), "the disk is full"),
        (ValueError("bad"), "ValueError: bad"),
        (KeyboardInterrupt(), "SIGINT"),
        (Interrupted(signal.SIGTERM, "step 3 of 9 of trunk lab/tiny"), "SIGTERM after step 3 of 9 of trunk lab/tiny"),
    ],
)
def test_an_exception_is_recorded_and_the_run_opens_again(tmp_path: Path, error: BaseException, reason: str) -> None:
    status = "failed" if isinstance(error, Exception) else "interrupted"
    with pytest.raises(type(error)), begin(tmp_path):
        raise error
    (record,) = read_ledger(tmp_path)
    assert (record.status, record.reason, record.attempts) == (status, reason, 1)
    with begin(tmp_path) as run:
        run.finish({})
    (record,) = read_ledger(tmp_path)
    assert (record.status, record.attempts) == ("finished", 2)


def test_leaving_without_a_result_is_a_failure(tmp_path: Path) -> None:
    with begin(tmp_path):
        pass
    assert read_ledger(tmp_path)[0].reason == "ended without a result"


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        with pytest.raises(LabError, match=rf"process {os.getpid()} on .* delete .*lock"):
            begin(tmp_path)
        run.finish({})


HOLDER = """
import sys, time
from moe_lab.training import open_run
open_run(sys.argv[1], "trunk", "team/tiny:64", {}, {})
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_the_lock_of_a_living_process_holds_and_that_of_a_killed_one_does_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(LabError, match=f"process {child.pid}"):
            begin(tmp_path, resolved={}, inputs={})
        child.kill()
    with begin(tmp_path, resolved={}, inputs={}) as run:
        run.finish({})


def write_lock(runs: Path, text: str) -> None:
    with begin(runs) as run:
        run.fail("makes the folder")
    (run.path / "lock").write_text(text)


def test_a_process_id_that_came_round_again_does_not_hold_the_lock(tmp_path: Path) -> None:
    parent = psutil.Process(os.getppid())
    earlier = {
        "pid": parent.pid,
        "process_started": parent.create_time() - 3600,
        "host": socket.gethostname(),
    }
    write_lock(tmp_path, json.dumps(earlier))
    with begin(tmp_path) as run:
        run.finish({})


def test_a_process_of_another_host_holds_the_lock(tmp_path: Path) -> None:
    write_lock(tmp_path, json.dumps({"pid": 1, "process_started": 0.0, "host": "elsewhere"}))
    with pytest.raises(LabError, match="process 1 on elsewhere"):
        begin(tmp_path)


def test_a_lock_whose_writer_died_halfway_is_taken_over(tmp_path: Path) -> None:
    write_lock(tmp_path, '{"pid": 1')
    with begin(tmp_path) as run:
        run.finish({})


CONTENDER = """
import sys, time
from pathlib import Path
from moe_lab.errors import LabError
from moe_lab.training.lock import RunLock
print("ready", flush=True)
sys.stdin.readline()
try:
    RunLock(Path(sys.argv[1]) / "lock").acquire()
    print("got it", flush=True)
except LabError:
    print("refused", flush=True)
sys.stdin.read()
"""


def test_of_many_processes_that_take_over_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    write_lock(tmp_path, json.dumps({"pid": 2**22 + 1, "process_started": 0.0, "host": socket.gethostname()}))
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    command = [sys.executable, "-c", CONTENDER, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
            for _ in range(4)
        ]
        streams = [(child.stdin, child.stdout) for child in children]
        assert [output.readline() for _, output in streams if output] == ["ready\n"] * 4
        for commands, _ in streams:
            assert commands is not None
            commands.write("go\n")
            commands.flush()
        answers = [output.readline() for _, output in streams if output]
    assert sorted(answers) == ["got it\n"] + ["refused\n"] * 3


def test_what_changed_on_the_machine_since_the_last_attempt_is_noted(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        assert run.notes == []
        run.fail("to resume it")
    file = run.path / "environment.json"
    environment = json.loads(file.read_text())
    environment["packages"]["jax"] = "0.0.1"
    file.write_text(json.dumps(environment))
    with begin(tmp_path) as run:
        (note,) = run.notes
        assert f"jax 0.0.1 -> {importlib.metadata.version('jax')}" in note
        run.finish({})


def test_a_runs_folder_that_is_a_file_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(LabError, match="must be one that you may write to"):
        begin(tmp_path / "runs")


def test_git_state_is_null_outside_a_repository_and_honest_inside(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert git_state(tmp_path) == {"commit": None, "dirty": False}
    (tmp_path / "file").write_text("1")
    assert git_state(tmp_path) == {"commit": None, "dirty": True}
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False


def test_git_state_is_null_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(ROOT) is None
