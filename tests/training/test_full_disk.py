"""A disk that fills up at any place is one line that says from where the same command goes on."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_lab.errors import LabError
from moe_lab.training import checkpoint, ledger, metrics, runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def full_from(original: Any, call: int) -> Any:
    """Returns `original`, which reports a full disk from its `call`-th call on."""
    calls = 0

    @functools.wraps(original)
    def limited(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    return limited


@pytest.mark.parametrize(
    ("module", "name", "call", "goes_on"),
    [
        (metrics, "append_line", 1, "starts over"),
        (checkpoint.ocp, "save", 3, "resumes from step 8"),
        (checkpoint, "write_json", 2, "resumes from step 4"),
    ],
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, mlp_run: Any, module: Any, name: str, call: int, goes_on: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, full_from(getattr(module, name), call))
        with pytest.raises(LabError, match=rf"^disk full while writing .*: free space and run .* again; .*{goes_on}$"):
            mlp_run.train(tmp_path, mlp_run.Mlp())
    assert mlp_run.train(tmp_path, mlp_run.Mlp()).metrics["step"] == 24


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [(ledger, "append_line", 1), (runs, "write_json", 1), (runs, "write_json", 3), (runs, "write_text", 1)],
)
def test_a_run_that_finds_no_space_to_begin_can_begin_later(tmp_path: Path, module: Any, name: str, call: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, full_from(getattr(module, name), call))
        with pytest.raises(LabError, match=r"^disk full while writing .*: free space and run"):
            runs.open_run(tmp_path, "test", "a", {}, {})
    with runs.open_run(tmp_path, "test", "a", {}, {}) as run:
        run.finish({})
    assert {path.name for path in run.path.iterdir()} >= {
        "run.json",
        "config.yaml",
        "environment.json",
        "git.json",
    }


def test_a_result_that_finds_no_space_can_be_written_later(tmp_path: Path) -> None:
    with runs.open_run(tmp_path, "test", "a", {}, {}) as run:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, "write_json", full_from(runs.write_json, 1))
            with pytest.raises(LabError, match="disk full"):
                run.finish({})
        run.fail("disk full")
    with runs.open_run(tmp_path, "test", "a", {}, {}) as run:
        assert run.done is None
        run.finish({})


SMALL_DISK = """
import importlib.util, os, sys
from pathlib import Path
from moe_lab.errors import LabError
spec = importlib.util.spec_from_file_location("mlp_run", sys.argv[2])
mlp_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mlp_run)
disk = Path(sys.argv[1])
ballast = disk / "ballast"
ballast.write_bytes(bytes(3_600_000))
spec = mlp_run.SPEC.model_copy(update={"keep": 100})
try:
    mlp_run.train(disk / "runs", mlp_run.Mlp(width=600), spec)
except LabError as error:
    print(error)
else:
    sys.exit("the disk did not fill up")
ballast.unlink()
print(mlp_run.train(disk / "runs", mlp_run.Mlp(width=600), spec).resumed_from)
"""


def may_mount() -> bool:
    try:
        return (
            subprocess.run(
                ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"],
                capture_output=True,
                check=False,
            ).returncode
            == 0
        )
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_mount(), reason="this user may not mount a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=4m none "$1" && exec "$2" -c "$3" "$1" "$4"'
    arguments = [str(tmp_path), sys.executable, SMALL_DISK, str(Path(__file__).with_name("mlp_run.py"))]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message, resumed_from = done.stdout.splitlines()
    assert message.startswith(f"disk full while writing {tmp_path}")
    assert message.endswith(f"it resumes from step {resumed_from}")
