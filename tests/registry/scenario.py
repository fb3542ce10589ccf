"""A small artifact to publish, and an operating system that fails on request."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.registry import OwnerKey, Registry

BLOCKS = frozenset({"layers.0.gate", "layers.0.down"})


def fields(**sections: Any) -> dict[str, Any]:
    return {"kind": "module", "summary": "for tests", "claims": {"bits_per_byte": 1.25}, **sections}


def tensors(seed: int = 0, blocks: int = 4) -> dict[str, Any]:
    """The blocks of one seed begin alike, however many are asked for, as the widths of one ladder do."""
    random = np.random.default_rng(seed)
    return {
        "layers.0.gate": random.normal(size=(64, 8, 3)).astype(np.float32)[:blocks],
        "layers.0.down": random.normal(size=(64, 3, 8)).astype(np.float32)[:blocks],
        "scale": np.float32(seed),
        "ids": np.arange(5, dtype=np.int32) + seed,
    }


def owner_key(number: int) -> OwnerKey:
    """A key for tests, the same every time."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return OwnerKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


def retire(root: Path, ref: str, reason: str) -> None:
    """Withdraws `owner/name@version` as its owner does."""
    Registry(root, create=False).retire(ref, reason)


def files(root: Path) -> dict[str, bytes]:
    """Every file that counts by its path; temporary files do not."""
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {path: data for path, data in found.items() if not path.startswith("tmp/")}


Fault = Callable[[str, tuple[Any, ...]], None]


class ShakyOs:
    """`os`, except that the operation with number `at` among those that change the disk goes wrong.

    Attributes:
        trace: each such operation with the path it works on; for a link, source and target.
    """

    CHANGES = ("write", "fsync", "link", "unlink", "mkdir", "rename", "utime")

    def __init__(self, at: int = -1, fault: Fault | None = None) -> None:
        self.at = at
        self.fault = fault
        self.trace: list[tuple[str, ...]] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CHANGES and name != "open":
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **options)
            self.trace.append((name, *_paths(arguments, options)))
            if len(self.trace) - 1 == self.at:
                assert self.fault is not None
                self.fault(name, arguments)
            return real(*arguments, **options)

        return call


def _paths(arguments: tuple[Any, ...], options: dict[str, Any]) -> list[str]:
    folders = [options[key] for key in ("dir_fd", "src_dir_fd", "dst_dir_fd") if key in options]
    if not folders:
        return [_path(arguments[0])]
    return [f"{_path(folder)}/{name}" for folder, name in zip(folders, arguments, strict=False)]


def _path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink()) if sys.platform == "linux" else str(descriptor)


def fails_with(code: int) -> Fault:
    def fault(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "write":
            _write_half(arguments)
        raise OSError(code, os.strerror(code))

    return fault


def dies(name: str, arguments: tuple[Any, ...]) -> None:
    """`kill -9`, with half of the data written where it hits a write."""
    if name == "write":
        _write_half(arguments)
    os.kill(os.getpid(), signal.SIGKILL)


def killed_everywhere(
    publishers: Callable[..., list[Any]], old: Path, job: dict[str, Any]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Copies of `old`, in each of which the job was killed at another operation; and what it answers if it is not.

    Its whole work stays beside them in `whole`.
    """
    shutil.copytree(old, old.with_name("whole"))
    (whole,) = publishers(old.with_name("whole"), job)
    for at in range(whole["operations"]):
        root = old.with_name(str(at))
        shutil.copytree(old, root)
        assert publishers(root, {**job, "kill_at": at}) == [None]
        yield root, whole
        shutil.rmtree(root)


def assert_appears_once(states: Sequence[bool]) -> None:
    """From some operation on it is there, and before that it is not."""
    assert list(states) == sorted(states)
    assert set(states) == {False, True}


def safe_order(trace: Sequence[tuple[str, ...]], root: Path, loose: set[str]) -> list[str]:
    """Replays a publication on a disk that keeps only what was synced: no name may come before what it needs.

    Args:
        loose: names that a power cut could still take away.

    Returns:
        The folders in which names appeared, in that order.
    """
    synced: set[str] = set()
    links: list[str] = []
    for name, path, *target in trace:
        if name == "write":
            synced.discard(path)
        elif name == "mkdir":
            loose.add(path)
        elif name == "fsync":
            synced.add(path)
            loose -= {entry for entry in loose if str(Path(entry).parent) == path}
        elif name == "link":
            links.append(os.path.relpath(target[0], root).split("/")[0])
            assert path in synced, "a name appeared before its bytes were safe"
            if links[-1] != "blobs":
                assert not {entry for entry in loose if Path(entry).name != "tmp"}
            loose.add(target[0])
    assert not loose, "publish returned before everything was safe"
    return links


def _write_half(arguments: tuple[Any, ...]) -> None:
    """A full disk, like a killed process, leaves a part behind."""
    os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
