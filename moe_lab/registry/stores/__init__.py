"""The places that can hold a registry. May import `errors` only."""

from __future__ import annotations

import os

from moe_lab.errors import LabError
from moe_lab.registry.stores.local import LocalStore, open_folder
from moe_lab.registry.stores.protocol import Keys, Store

__all__ = ["Keys", "LocalStore", "Store", "open_store"]


def open_store(path: str | os.PathLike[str], create: bool) -> Store:
    """Opens the place that a path or URL names, making a folder first if asked."""
    text = os.fspath(path)
    if "://" in text:
        raise LabError(f"registry {text!r}: only local and NFS paths work in this version; name a shared folder.")
    return open_folder(path, create)
