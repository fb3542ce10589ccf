"""Files that survive a kill: whole or absent, and a full disk said in one line."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moe_lab.errors import LabError, Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What file systems answer that cannot lock a file, or cannot sync a folder.
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def utc_now() -> str:
    """Returns the time as ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def write_atomic(path: Path, text: str) -> None:
    """Writes a file that a reader, or the next process after a kill, finds whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def exclusive(descriptor: int) -> None:
    """Waits for the file's advisory lock, on file systems that have one; closing the file lets it go."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def append_line(path: Path, line: str) -> None:
    """Appends one line by a single write to a file opened for appending.

    On one host the kernel keeps such writes whole; the lock orders the writers of several hosts too, where
    O_APPEND alone does not (NFS). A line that a full disk tore earlier gets its newline first.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        exclusive(descriptor)
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + line.encode() + b"\n"
        while data:  # a second round happens only on a full disk, and raises
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any] | None]:
    """Returns the JSON object of each line of a JSON Lines file; None for a line that is torn."""
    if not path.exists():
        return []
    return [_parse(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def sync(path: Path) -> None:
    """Makes a file's bytes, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def is_full_disk(error: BaseException) -> bool:
    """Tells a full disk or an exhausted quota; TensorStore reports it only in the text of another error."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(os.strerror(code) in str(error) for code in _FULL)


@contextlib.contextmanager
def explain_full_disk(folder: Path, resumes: Callable[[], str]) -> Iterator[None]:
    """Turns a full disk under `folder` into an `Unavailable` that ends with where the same command goes on."""
    try:
        yield
    except Exception as error:
        if isinstance(error, LabError) or not is_full_disk(error):
            raise
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free / 1e6
        raise Unavailable(
            f"disk full while writing {folder} ({free:.1f} MB free): "
            f"free space and run the same command again; it {resumes()}"
        ) from error
