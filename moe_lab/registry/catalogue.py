"""Listing many artifacts fast: what a list shows of each is kept in the user's cache folder, by its digest.

A manifest never changes under its digest, so what was read once stays true. The cache may be deleted at any time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_lab.errors import Damaged, LabError, Unavailable
from moe_lab.files import digest_of, user_cache, write_bytes
from moe_lab.registry.chunks import spread
from moe_lab.registry.exact_json import canonical
from moe_lab.registry.marks import Mark
from moe_lab.registry.read import read_manifest
from moe_lab.registry.references import ArtifactRef, manifest_key
from moe_lab.registry.refs import MAX_REF_BYTES, digest_in, published_of, ref_key, retired_reason
from moe_lab.registry.stores import LocalStore, Store
from moe_lab.registry.stores.walk import read_tree

_WORTH_KEEPING = 100
"""Fewer new manifests than this are read again each time, so small registries leave no cache behind."""


@dataclass(frozen=True)
class Entry:
    """What a list shows of one published version.

    Attributes:
        digest: "" where the reference itself cannot be read.
        retired: why it is retired, or None.
        problem: why it cannot be read, or None; the rest is empty then.
    """

    ref: ArtifactRef
    digest: str = ""
    kind: str = ""
    summary: str = ""
    ladder: tuple[Any, ...] = ()
    retired: str | None = None
    problem: str | None = None


def catalogue(store: Store, cache: Path | None) -> list[Entry]:
    """See `Registry.list`."""
    references = _references(store)
    published = [(ref, last, *_digest(store, ref, references)) for ref, last in published_of(references)]
    wanted = {digest: ref for ref, _, digest, _ in published if digest}
    known = _load(cache) if cache else {}
    # One listing tells which manifests are gone, without opening any.
    there = set(store.list("manifests"))
    known = {digest: known[digest] for digest in wanted if digest in known and manifest_key(digest) in there}
    new = {digest: ref for digest, ref in wanted.items() if digest not in known}
    shown = {**known, **_read(store, new)}
    if cache and len(new) >= _WORTH_KEEPING:
        _save(cache, {digest: about for digest, about in shown.items() if isinstance(about, dict)})
    return [_entry(store, ref, last, digest, problem or shown[digest]) for ref, last, digest, problem in published]


def cache_file(store: Store) -> Path | None:
    """Where the catalogue of a registry is kept; None on an account without a home."""
    with suppress(RuntimeError):
        place = digest_of(store.where("").encode("utf-8", "surrogateescape")).removeprefix("sha256-")
        return user_cache() / f"catalogue-{place[:16]}.json"
    return None


def _references(store: Store) -> Mapping[str, bytes | None]:
    if isinstance(store, LocalStore):
        return read_tree(store, "refs", MAX_REF_BYTES)
    keys = store.list("refs")
    # Marks are read one by one if they are needed: most are not.
    return dict(zip(keys, spread(lambda key: _small(store, key), keys, 1 << 20), strict=True))


def _small(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key, MAX_REF_BYTES)
    except (Damaged, Unavailable, OSError):
        return None


def _digest(store: Store, ref: ArtifactRef, references: Mapping[str, bytes | None]) -> tuple[str, str]:
    """The digest a reference holds, or "" and why it has none."""
    try:
        return digest_in(store, ref, references[ref_key(ref)]), ""
    except Damaged as error:
        return "", str(error)


def _entry(store: Store, ref: ArtifactRef, last: Mark | None, digest: str, about: Mapping[str, Any] | str) -> Entry:
    try:
        retired = retired_reason(store, last) if last else None
    except Damaged as error:
        return Entry(ref, digest, problem=str(error))
    if isinstance(about, str):
        return Entry(ref, digest, retired=retired, problem=about)
    return Entry(ref, digest, about["kind"], about["summary"], tuple(about["ladder"]), retired)


def _read(store: Store, new: Mapping[str, ArtifactRef]) -> dict[str, dict[str, Any] | str]:
    """What a list shows of each manifest, or why it cannot be read."""

    def read(item: tuple[str, ArtifactRef]) -> dict[str, Any] | str:
        try:
            manifest = read_manifest(store, item[0], str(item[1]))
        except LabError as error:
            return str(error)
        return {"kind": manifest.kind, "summary": manifest.summary, "ladder": manifest.ladder}

    # Threads hide the way to another machine; on a disk of ours they would only wait for each other.
    far = 0 if isinstance(store, LocalStore) else 1 << 20
    return dict(zip(new, spread(read, list(new.items()), far), strict=True))


def _load(cache: Path) -> dict[str, dict[str, Any]]:
    """Nothing where the file is absent, or not what was written: then everything is read anew."""
    with suppress(OSError, ValueError):
        line, _, data = cache.read_bytes().partition(b"\n")
        if line.decode() == digest_of(data):
            kept: dict[str, dict[str, Any]] = json.loads(data)
            return kept
    return {}


def _save(cache: Path, shown: Mapping[str, Collection[Any]]) -> None:
    """Whole or not at all. A cache that cannot be written costs time and nothing else."""
    data = canonical(shown)
    with suppress(OSError):
        write_bytes(cache, f"{digest_of(data)}\n".encode() + data)
