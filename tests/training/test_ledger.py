from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_lab.training.ledger import LEDGER, read_ledger, record_event

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import sys
from pathlib import Path
from moe_lab.training.ledger import record_event
for number in range(100):
    record_event(Path(sys.argv[1]), "started", run=sys.argv[2], kind="k", name="n" * 5000, number=number)
"""


def python(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_lines_of_processes_that_write_at_once_stay_whole(tmp_path: Path) -> None:
    writers = [python(WRITER, tmp_path, f"run{index}") for index in range(6)]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 6
    lines = [json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines()]
    assert len(lines) == 600
    for index in range(6):
        assert [line["number"] for line in lines if line["run"] == f"run{index}"] == list(range(100))


def test_events_fold_into_one_record_per_run(tmp_path: Path) -> None:
    record_event(tmp_path, "started", run="a", kind="trunk", name="tiny")
    record_event(tmp_path, "started", run="b", kind="module", name="x/y")
    record_event(tmp_path, "failed", run="a", kind="trunk", name="tiny", seconds=2.0, reason="disk full")
    record_event(tmp_path, "resumed", run="a", kind="trunk", name="tiny")
    record_event(tmp_path, "finished", run="a", kind="trunk", name="tiny", seconds=3.0)
    first, second = read_ledger(tmp_path)
    assert (first.run, first.kind, first.name, first.status) == ("a", "trunk", "tiny", "finished")
    assert (first.attempts, first.seconds, first.reason) == (2, 5.0, None)
    assert datetime.datetime.fromisoformat(first.started).utcoffset() == datetime.timedelta(0)
    assert (second.run, second.status, second.attempts) == ("b", "running", 1)


def test_a_failure_keeps_its_reason(tmp_path: Path) -> None:
    record_event(tmp_path, "started", run="a")
    record_event(tmp_path, "failed", run="a", seconds=1.5, reason="the loss is not finite")
    (record,) = read_ledger(tmp_path)
    assert (record.status, record.reason) == ("failed", "the loss is not finite")


def test_a_run_whose_process_was_killed_is_interrupted(tmp_path: Path) -> None:
    sleeper = "import time, sys; " + WRITER.replace("range(100)", "range(1)") + "\ntime.sleep(60)"
    child = python(sleeper, tmp_path, "a")
    while not (tmp_path / LEDGER).exists() or not (tmp_path / LEDGER).stat().st_size:
        time.sleep(0.01)
    assert read_ledger(tmp_path)[0].status == "running"
    child.kill()
    time.sleep(0.1)
    assert read_ledger(tmp_path)[0].status == "interrupted"  # a killed child not yet waited for is a zombie
    child.wait()
    assert read_ledger(tmp_path)[0].status == "interrupted"


def test_killed_after_its_result_was_written_a_run_is_finished(tmp_path: Path) -> None:
    assert python(WRITER, tmp_path, "a").wait(timeout=60) == 0
    assert read_ledger(tmp_path)[0].status == "interrupted"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("{}")
    assert read_ledger(tmp_path)[0].status == "finished"


def test_a_torn_line_is_skipped_with_a_warning_and_hurts_no_other(tmp_path: Path) -> None:
    record_event(tmp_path, "started", run="a")
    with (tmp_path / LEDGER).open("a") as file:
        file.write('{"event": "fini')
    record_event(tmp_path, "started", run="b")
    with pytest.warns(UserWarning, match=r"ledger.jsonl:2: a torn line"):
        records = read_ledger(tmp_path)
    assert [record.run for record in records] == ["a", "b"]


def test_no_ledger_is_no_runs(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) == []
