"""No test may hang unnoticed."""

import subprocess
import sys
from pathlib import Path

import pytest

HANGS = """
import threading
def test_hangs():
    threading.Event().wait()
"""


def test_every_test_has_a_time_limit(pytestconfig: pytest.Config) -> None:
    assert 0 < float(pytestconfig.getini("timeout")) <= 600
    assert pytestconfig.getini("timeout_method") == "thread"


def test_a_test_that_hangs_ends_with_its_stack(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "test_hangs.py").write_text(HANGS)
    configured = ["-c", str(repository / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "no:xdist", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *configured, "-o", "timeout=1", str(tmp_path / "test_hangs.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "Timeout" in done.stdout + done.stderr
    assert "test_hangs.py" in done.stdout + done.stderr
