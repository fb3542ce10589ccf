"""Reading all files of a folder in one go: each folder is entered once, from its parent, and no link is followed."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from moe_lab.errors import Damaged
from moe_lab.registry.stores.local import READ_FILE, READ_FOLDER, LocalStore

# Deeper folders hold nothing of a registry, and each level costs a descriptor.
_DEPTH = 8


def read_tree(store: LocalStore, prefix: str, limit: int) -> dict[str, bytes | None]:
    """The bytes of every plain file up to `limit` bytes below a folder; None for whatever else has a name there."""
    files: dict[str, bytes | None] = {}
    try:
        with store._folder([prefix]) as folder:
            _read_folder(store, folder, prefix, limit, _DEPTH, files)
    except FileNotFoundError:
        pass
    except Damaged:
        files[prefix] = None
    return files


def _read_folder(
    store: LocalStore, folder: int, path: str, limit: int, depth: int, files: dict[str, bytes | None]
) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            key = f"{path}/{entry.name}"
            with suppress(FileNotFoundError):  # removed since the folder was read: it is not there
                if depth and entry.is_dir(follow_symlinks=False):
                    with store._naming(key):
                        inner = os.open(entry.name, READ_FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                    try:
                        _read_folder(store, inner, key, limit, depth - 1, files)
                    finally:
                        os.close(inner)
                else:
                    files[key] = _read_file(folder, entry.name, limit)


def _read_file(folder: int, name: str, limit: int) -> bytes | None:
    try:
        descriptor = os.open(name, READ_FILE, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            return None
        return os.read(descriptor, limit)
    except OSError:
        return None
    finally:
        os.close(descriptor)
