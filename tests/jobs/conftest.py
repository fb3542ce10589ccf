"""One tiny lab whose whole study ran, shared by the tests that only look at it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moe_lab.cli import main
from tests.jobs.tiny import write_tiny_lab


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny lab after `moe-lab run`."""
    lab = write_tiny_lab(tmp_path_factory.mktemp("study") / "lab")
    assert main(["--lab", str(lab), "run", "tiny"]) == 0
    return lab


@pytest.fixture
def tiny_lab(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of the finished lab to change."""
    return Path(shutil.copytree(finished_study, tmp_path / "copy", symlinks=True))
