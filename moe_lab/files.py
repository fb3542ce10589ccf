"""Files that survive a kill or a power cut: whole or absent, named by their digests; a full disk said in one line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from moe_lab.errors import LabError, Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What file systems answer that cannot lock a file, or cannot sync a folder.
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/moe-lab`, else `~/.cache/moe-lab`; `RuntimeError` on an account without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "moe-lab"


def digest_of(data: bytes | memoryview) -> str:
    """Returns `sha256-<64 lowercase hex digits>`, the name under which these bytes are stored."""
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


@contextlib.contextmanager
def open_replacement(path: Path) -> Iterator[BinaryIO]:
    """Opens a file beside `path` that takes its place at the end: whole and on the disk, or not at all.

    Readers, and the next process after a kill, find the old file or the whole new one. The folder is made if it is
    not there. Several processes may write the same file at once; the last one to finish wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    with open_replacement(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def exclusive(descriptor: int) -> None:
    """Waits for the file's advisory lock, on file systems that have one; closing the file lets it go."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def claim(path: Path) -> BinaryIO | None:
    """Opens a file, made if it is not there, and takes its advisory lock; None if somebody else has it.

    The lock is held until the file is closed or the process is gone. Where a file system has no locks, all get it.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return file
        file.close()
        if error.errno != errno.EWOULDBLOCK:
            raise
        return None
    return file


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
