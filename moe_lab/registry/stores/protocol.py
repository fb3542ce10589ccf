"""What a place must offer to hold a registry: keys such as `blobs/sha256-<hex>`, each written once.

There are no locks: on several cluster file systems they do nothing. What makes publishing safe is one
operation, `put_if_absent`, which at most one writer wins.
"""

from __future__ import annotations

import re
from typing import Protocol

from moe_lab.errors import Damaged

Keys = list[str]

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def key_parts(key: str) -> Keys:
    """The folders and the name of a key; `Damaged` where one of them could lead out of the registry."""
    parts = key.split("/")
    for part in parts:
        if _PART.fullmatch(part) is None:
            raise Damaged(f"{key!a} is not a name that this registry gives to its files; remove that file.")
    return parts


class Store(Protocol):
    """What a place must offer to hold a registry. Operations raise `OSError` where the place itself fails."""

    def put_if_absent(self, key: str, data: bytes | memoryview) -> bool:
        """Stores `data` durably and whole, or returns False, changing nothing, where the key is taken."""

    def get(self, key: str, limit: int) -> bytes:
        """All bytes. `FileNotFoundError` without the key, `Damaged` beyond `limit` or if no plain file."""

    def descriptor(self, key: str) -> int | None:
        """A plain file with these bytes, open for reading, or None where there is none to open; errors as of `get`."""

    def exists(self, key: str) -> bool:
        """Whether something, a plain file or not, has this key."""

    def where(self, key: str) -> str:
        """The place of a key in words a person can act on."""

    def list(self, prefix: str) -> Keys:
        """Keys under a folder, sorted; empty where there is no such folder."""
