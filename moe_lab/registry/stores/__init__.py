"""The places that can hold a registry. May import `errors` and the registry's `references` only."""

from __future__ import annotations

import os
from pathlib import Path

from moe_lab.errors import LabError, NotFound
from moe_lab.registry.stores.cache import CachedStore, CacheWarning, cache_folder, offline_asked
from moe_lab.registry.stores.local import LocalStore, open_folder
from moe_lab.registry.stores.objects import ObjectStore
from moe_lab.registry.stores.protocol import Keys, Store

__all__ = ["CacheWarning", "CachedStore", "Keys", "LocalStore", "ObjectStore", "Store", "open_store", "origin"]


def open_store(path: str | os.PathLike[str], create: bool) -> Store:
    """Opens the place that a path or URL names, making a folder first if asked.

    Buckets are read through a cache, and folders too where `MOE_LAB_CACHE` names a place for it.
    """
    text = os.fspath(path)
    if "://" in text:
        bucket = ObjectStore(text)
        return _cached(bucket, bucket.bucket.identity, offline_asked())
    if text.startswith(("s3:/", "gs:/")):
        raise LabError(
            f"registry {text!r}: a URL has two slashes, {text[:3]}//bucket/prefix; a Path drops one, so use text."
        )
    try:
        folder = Path(text).expanduser()
    except RuntimeError:
        raise NotFound(f"registry {text!r}: there is no such home; write the path in full.") from None
    if cache_folder("", by_default=False) is None:
        return open_folder(folder, create)
    offline = offline_asked()
    # Without its server a mounted folder may be gone, or hang; offline it is not touched.
    remote = LocalStore(folder) if offline else open_folder(folder, create)
    return _cached(remote, str(folder.absolute()), offline)


def origin(store: Store) -> Store:
    """The registry itself behind a cache: for what checks or copies it rather than uses it."""
    return store.remote if isinstance(store, CachedStore) and not store.offline else store


def _cached(remote: Store, identity: str, offline: bool) -> Store:
    folder = cache_folder(identity, by_default=True)
    if folder is not None:
        return CachedStore(remote, folder, offline)
    if offline:
        raise LabError(
            f"MOE_LAB_OFFLINE=1 reads {remote.where('')} from its cache, and MOE_LAB_CACHE=off forbids one; "
            "unset either."
        )
    return remote
