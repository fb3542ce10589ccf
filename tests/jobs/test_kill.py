"""`kill -9` at random moments of a training, then the same command again: the same bytes as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_lab.cli import main
from moe_lab.registry import Registry
from moe_lab.training import read_ledger
from tests.jobs.tiny import write_tiny_lab

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 60


def start(lab: Path) -> subprocess.Popen[bytes]:
    """The real command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "moe_lab", "--lab", str(lab), "train", "trunk", "--publish"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_steps(lab: Path, process: subprocess.Popen[bytes], steps: int) -> None:
    """Waits until the metrics show this step, or the process ends."""
    while process.poll() is None:
        logged = [path.read_text().count("\n") for path in (lab / "runs").glob("trunk-*/metrics.jsonl")]
        if logged and logged[0] * 5 >= steps:
            return
        time.sleep(0.01)


def test_a_killed_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    undisturbed, killed = (write_tiny_lab(tmp_path / name, STEPS) for name in ("undisturbed", "killed"))
    assert main(["--lab", str(undisturbed), "train", "trunk", "--publish"]) == 0
    draw = random.Random(0)
    saved = 0
    for steps, sent in ((5, signal.SIGKILL), (20, signal.SIGINT), (35, signal.SIGTERM), (50, signal.SIGKILL)):
        process = start(killed)
        wait_for_steps(killed, process, steps)
        time.sleep(draw.random() * 0.02)
        process.send_signal(sent)
        told = process.communicate()[0].decode()
        if sent == signal.SIGKILL:
            assert process.returncode == -sent, "the training was over before it could be killed"
        else:
            assert process.returncode == 128 + sent, told
            assert saved == 0 or f"resuming from step {saved} of {STEPS}" in told
            found = re.search(rf"interrupted after step (\d+) of {STEPS} of trunk lab/tiny, which is saved", told)
            assert found, told
            assert told.rstrip().endswith("train trunk --publish")
            saved = int(found[1])
            assert [record.status for record in read_ledger(killed / "runs")] == ["interrupted"]
    output, _ = start(killed).communicate(timeout=300)
    assert b"published lab/tiny@1" in output, output.decode()
    digests = [Registry(lab / "registry", create=False).resolve("lab/tiny").digest for lab in (undisturbed, killed)]
    assert digests[0] == digests[1]
