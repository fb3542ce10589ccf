"""The promise of resume: killed anywhere, any number of times, the run ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moe_lab.training import read_ledger
from moe_lab.training.metrics import TIMING_FIELDS

CHILD = Path(__file__).with_name("mlp_run.py")
ROOT = CHILD.parents[2]
DEATHS = [
    "at a random time",
    "while saving",
    "before the seal",
    "while removing an old checkpoint",
    "in the middle of a line of metrics",
    "at a random time",
]


def start(runs: Path, out: Path, *death: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(CHILD), str(runs), str(out), *death]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def kill_at_a_random_time(child: subprocess.Popen, runs: Path) -> None:
    """Kills up to half a second after the child has logged something new."""
    before = [path.stat().st_mtime_ns for path in runs.glob("*/metrics.jsonl")]
    while child.poll() is None:
        time.sleep(0.005)
        if [path.stat().st_mtime_ns for path in runs.glob("*/metrics.jsonl")] != before:
            break
    time.sleep(random.uniform(0, 0.3))
    child.kill()


def metrics(runs: Path) -> list[dict]:
    (file,) = runs.glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING_FIELDS} for line in lines]


@pytest.mark.slow
def test_killed_many_times_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    uninterrupted = start(calm, tmp_path / "calm.npz")
    for death in DEATHS:
        child = start(stormy, tmp_path / "stormy.npz", *([] if death == "at a random time" else [death]))
        if death == "at a random time":
            kill_at_a_random_time(child, stormy)
        _, errors = child.communicate(timeout=60)
        assert child.returncode in (-9, 0), errors
    (record,) = read_ledger(stormy)
    assert record.attempts == len(DEATHS)

    last = start(stormy, tmp_path / "stormy.npz")
    for child in (last, uninterrupted):
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors

    with np.load(tmp_path / "calm.npz") as expected, np.load(tmp_path / "stormy.npz") as found:
        assert set(found) == set(expected)
        for name in expected:
            assert found[name].tobytes() == expected[name].tobytes(), name
    assert metrics(stormy) == metrics(calm)
    folder = next(stormy.glob("*/checkpoints"))
    assert sorted(path.name for path in folder.iterdir()) == ["20", "24"]
