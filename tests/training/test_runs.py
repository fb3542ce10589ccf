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

import jax
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


def test_an_interruption_carries_what_the_same_command_does_again(tmp_path: Path) -> None:
    def work() -> None:
        with begin(tmp_path) as outer, begin(tmp_path, kind="outcomes"):
            seal = outer.path / "checkpoints" / "40" / "seal.json"
            seal.parent.mkdir(parents=True)
            seal.write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        work()
    assert stopped.value.__notes__ == ["outcomes team/tiny:64 starts over", "trunk team/tiny:64 goes on from step 40"]


def test_leaving_without_a_result_is_a_failure(tmp_path: Path) -> None:
    with begin(tmp_path):
        pass
    assert read_ledger(tmp_path)[0].reason == "ended without a result"


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        with pytest.raises(LabError, match=rf"process {os.getpid()} on .*: wait for it or stop it$"):
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


UNSEEN = """
import sys
from pathlib import Path
from moe_lab.errors import LabError
from moe_lab.training import open_run, read_ledger
try:
    open_run(sys.argv[1], "trunk", "team/tiny:64", {}, {})
    print("taken")
except LabError as error:
    print(error)
print([record.status for record in read_ledger(Path(sys.argv[1]))])
"""
ELSEWHERE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]


def may_unshare() -> bool:
    try:
        return subprocess.run([*ELSEWHERE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not may_unshare(), reason="this user may not make a PID namespace")
def test_a_holder_is_seen_from_another_pid_namespace_and_its_death_too(tmp_path: Path) -> None:
    """As two containers with one host name and one folder; the holder's forked child outlives it."""
    forking = HOLDER.replace('print("held"', 'import os; os.fork() or time.sleep(60); print("held"')
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", forking, str(tmp_path)]
    unseen = [*ELSEWHERE, sys.executable, "-c", UNSEEN, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        forked = psutil.Process(child.pid).children()
        try:
            told = subprocess.run(unseen, env=environment, capture_output=True, text=True, check=True).stdout
            assert f"is being written by process {child.pid} on" in told
            assert "['running']" in told
            child.kill()
            child.wait()
            told = subprocess.run(unseen, env=environment, capture_output=True, text=True, check=True).stdout
            assert told.startswith("taken")
        finally:
            child.kill()
            for process in forked:
                process.kill()


def test_looking_at_the_ledger_does_not_let_go_of_a_lock(tmp_path: Path) -> None:
    """Whoever closes a file lets go of the record locks that the process has on it."""
    with begin(tmp_path) as run:
        assert read_ledger(tmp_path)[0].status == "running"
        with pytest.raises(LabError, match="is being written by process"):
            begin(tmp_path)
        command = [sys.executable, "-c", CONTENDER, str(run.path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        (run.path / "lock").write_text("")  # its number says nothing: only what it holds does
        told = subprocess.run(command, env=environment, input="go\n", capture_output=True, text=True, check=True)
        assert told.stdout == "ready\nrefused\n"
        run.finish({})


@pytest.mark.parametrize("text", ["", '{"ref": "team', "[]"])
def test_a_broken_result_does_not_count_as_done_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    with begin(tmp_path) as run:
        run.finish({"ref": "team/tiny@1"})
    (run.path / "result.json").write_text(text)
    (record,) = read_ledger(tmp_path)
    assert (record.status, record.reason) == ("interrupted", "result.json is empty or broken")
    with begin(tmp_path) as again:
        assert again.done is None
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"note: {run.path / 'result.json'} is empty or broken")
        again.finish({"ref": "team/tiny@1"})
    assert read_ledger(tmp_path)[0].status == "finished"


@pytest.mark.parametrize("text", ["", '{"python": ', "[]"])
def test_a_broken_description_of_the_machine_is_written_anew(tmp_path: Path, text: str) -> None:
    with begin(tmp_path) as run:
        run.fail("to resume it")
    (run.path / "environment.json").write_text(text)
    with begin(tmp_path) as again:
        assert again.notes == []
        assert json.loads((again.path / "environment.json").read_text())["cpu_count"] == os.cpu_count()
        again.finish({})


def test_what_jax_was_told_about_numbers_is_recorded_and_named_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with begin(tmp_path) as run:
        run.fail("to resume it")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"), begin(tmp_path) as again:
        (note,) = again.notes
        for change in ("jax_enable_x64 False -> True", "precision None -> highest", "XLA_FLAGS None -> --xla_cpu"):
            assert change in note
        again.fail("to resume it")
    environment = json.loads((run.path / "environment.json").read_text())
    del environment["jax"]  # as an earlier version wrote it
    (run.path / "environment.json").write_text(json.dumps(environment))
    with begin(tmp_path) as later:
        assert later.notes == []
        later.finish({})


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
