"""Reads one artifact whole, so that the cache has all of it and it can be used without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_lab.errors import LabError, Unavailable
from moe_lab.registry.chunks import spread
from moe_lab.registry.read import read_chunk, read_manifest
from moe_lab.registry.references import ArtifactRef, blob_key, manifest_key
from moe_lab.registry.refs import Resolved
from moe_lab.registry.stores import CachedStore, Store

_MAX_SIGNATURE_BYTES = 4096


@dataclass(frozen=True)
class Fetched:
    """What is in the cache now.

    Attributes:
        blobs: distinct chunks of the artifact.
        bytes: their size together.
    """

    name: str
    digest: str
    blobs: int
    bytes: int
    folder: Path


def fetch(store: Store, resolved: Resolved) -> Fetched:
    """Fills the cache with an artifact that was just resolved; what is there already is hashed again."""
    if not isinstance(store, CachedStore):
        raise LabError(
            f"{store.where('')} is read without a cache, so there is nothing to fill: set MOE_LAB_CACHE=DIR first."
        )
    name = str(resolved.ref or resolved.digest)
    manifest = read_manifest(store, resolved.digest, name)
    blobs = manifest.blobs()
    total = sum(chunk.size for chunk in blobs.values())
    for _ in spread(lambda chunk: len(read_chunk(store, chunk)), list(blobs.values()), total):
        pass
    _read_signatures(store, resolved.ref)
    wanted = [manifest_key(resolved.digest), *map(blob_key, blobs)]
    if not all(store.keeps(key) for key in wanted):
        raise Unavailable(
            f"{name} is not whole in the cache {store.folder}, which cannot be written: free space there, or set "
            "MOE_LAB_CACHE to another folder."
        )
    return Fetched(name, resolved.digest, len(blobs), total, store.folder)


def _read_signatures(store: Store, ref: ArtifactRef | None) -> None:
    if ref is not None:
        for key in store.list(f"signatures/{ref.title}/{ref.version}"):
            store.get(key, _MAX_SIGNATURE_BYTES)
