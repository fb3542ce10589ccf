"""One tiny lab whose whole study ran, shared by the tests that only look at it."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from moe_lab.cli import main
from tests.jobs.tiny import write_tiny_lab


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny lab after `moe-lab run`, a copy for each process of this run of tests; the first one makes it."""
    lab = tmp_path_factory.mktemp("study") / "lab"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _run_study(lab)
    shared = tmp_path_factory.getbasetemp().parent
    with (shared / "study.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "study").exists():
            _run_study(shared / "unfinished").rename(shared / "study")
    return Path(shutil.copytree(shared / "study", lab, symlinks=True))


def _run_study(lab: Path) -> Path:
    write_tiny_lab(lab)
    assert main(["--lab", str(lab), "run", "tiny"]) == 0
    return lab


@pytest.fixture
def tiny_lab(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of the finished lab to change."""
    return Path(shutil.copytree(finished_study, tmp_path / "copy", symlinks=True))
