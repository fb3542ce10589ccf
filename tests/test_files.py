"""Whole or not at all, whoever writes and whatever stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moe_lab.files import digest_of, open_replacement, write_json, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with open_replacement(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_text(path, "old")
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, float("nan"))
    with pytest.raises(RuntimeError, match="in the middle"):
        _stop_in_the_middle(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _stop_in_the_middle(path: Path) -> None:
    with open_replacement(path) as file:
        file.write(b"half")
        raise RuntimeError("in the middle")


def test_the_bytes_and_the_name_are_on_the_disk_before_it_returns(tmp_path: Path, monkeypatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watch_fsync(descriptor: int) -> None:
        events.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".")[-1])
        fsync(descriptor)

    def watch_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(Path, "replace", watch_replace)
    write_text(tmp_path / "file.txt", "text")
    assert events == ["sync tmp", "rename", f"sync {tmp_path.name}"]


KILLED = """
import os, signal, sys
from pathlib import Path
from moe_lab.files import open_replacement
with open_replacement(Path(sys.argv[1])) as file:
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_digest_is_the_sha256_of_the_bytes() -> None:
    assert digest_of(b"") == "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
