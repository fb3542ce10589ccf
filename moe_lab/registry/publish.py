"""The write path: blobs, the manifest, a signature, the reference, each durable before the next begins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moe_lab.errors import Damaged, LabError, Refused
from moe_lab.files import digest_of
from moe_lab.registry.chunks import chunks_of, describe, spread
from moe_lab.registry.exact_json import ManifestProblem
from moe_lab.registry.failures import write_error
from moe_lab.registry.manifest import Manifest, build
from moe_lab.registry.references import ArtifactRef, blob_key, manifest_key, version_order
from moe_lab.registry.refs import Versions, read_ref, ref_key, versions
from moe_lab.registry.stores import LocalStore, Store, origin

_TOGETHER_BYTES = 32 << 20  # of tensors that wait to be written with others; syncs share a journal commit

Signing = Callable[[ArtifactRef, str], object]
"""Signs a version with this manifest before the version is there."""


@dataclass(frozen=True)
class Published:
    """What `publish` did.

    Attributes:
        ref: with its version.
        created: False where this very content had been published under this reference before.
    """

    ref: ArtifactRef
    digest: str
    created: bool


def publish(
    store: Store,
    ref: ArtifactRef,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Any],
    block_tensors: Collection[str],
    signing: Signing | None = None,
) -> Published:
    """See `Registry.publish`. `ref.version` None means the next free integer."""
    try:
        records = describe(tensors, frozenset(block_tensors))
        manifest, data = build(fields, records)
    except ManifestProblem as problem:
        raise LabError(f"cannot publish {ref}: {problem}.") from None
    with _nothing_published(store, ref):
        if ref.version is not None:
            _check_free(store, ref, manifest.digest)
        _put_blobs(store, tensors, manifest)
        put_content(store, manifest_key(manifest.digest), manifest.digest, data)
    done = _claim(store, ref, manifest.digest, signing)
    _put_again(store, done, tensors, manifest, data)
    return done


def _put_blobs(store: Store, tensors: Mapping[str, Any], manifest: Manifest) -> None:
    """Stores what tensors are made of, reading them a second time, a few at once: all together may not fit memory."""
    waiting: dict[str, memoryview] = {}
    written: set[str] = set()
    for name, record in manifest.records.items():
        if not written.issuperset(record.chunks):
            waiting |= dict(chunks_of(name, tensors[name], record))
        if sum(map(len, waiting.values())) >= _TOGETHER_BYTES:
            written |= _put_all(store, waiting)
            waiting = {}
    _put_all(store, waiting)


def _put_all(store: Store, chunks: Mapping[str, memoryview]) -> set[str]:
    total = sum(map(len, chunks.values()))
    for _ in spread(lambda item: put_content(store, blob_key(item[0]), *item), list(chunks.items()), total):
        pass
    return set(chunks)


def put_content(store: Store, key: str, digest: str, data: bytes | memoryview) -> None:
    """Stores content under its digest. What is there already is hashed, for disks rot."""
    while not store.put_if_absent(key, data):
        try:
            stored = store.get(key, len(data))
        except FileNotFoundError:
            continue  # collected in between
        if digest_of(stored) == digest:
            return
        raise Damaged(
            f"{store.where(key)} is damaged: its bytes are not what its name says. Nothing was published. "
            "Delete that file and run the same command again, which writes it anew."
        )


def _put_again(
    store: Store, done: Published, tensors: Mapping[str, Any], manifest: Manifest, manifest_bytes: bytes
) -> None:
    """Writes anew what was collected before the reference was there: an upload may outlast the grace period."""
    if not isinstance(origin(store), LocalStore):
        return  # only folders are collected
    try:
        for name, record in manifest.records.items():
            gone = {digest for digest in record.chunks if not store.exists(blob_key(digest))}
            if gone:
                chunks = chunks_of(name, tensors[name], record)
                _put_all(store, {digest: data for digest, data in chunks if digest in gone})
        if not store.exists(manifest_key(done.digest)):
            put_content(store, manifest_key(done.digest), done.digest, manifest_bytes)
    except OSError as error:
        outcome = f"{done.ref} is published, but whether all of it is still there is not certain."
        raise write_error(f"publish {done.ref} to {store.where('')}", error, outcome) from error


def _check_free(store: Store, ref: ArtifactRef, digest: str) -> None:
    """Refuses a taken version before anything is written. Between two at once `put_if_absent` decides."""
    try:
        taken = read_ref(store, ref)
    except FileNotFoundError:
        if ref.version in versions(store, ref).marks:
            raise Refused(
                f"{ref} was retired and removed; a version is never used twice. {_bump(store, ref)}"
            ) from None
        return
    if taken != digest:
        raise Refused(f"{ref} is already published with other content, and versions never change. {_bump(store, ref)}")


def _bump(store: Store, ref: ArtifactRef) -> str:
    return f"Publish it as {ref.title}@{_after(versions(store, ref))}, or leave the version out."


def _after(there: Versions) -> str:
    return str(1 + max((version_order(version)[0] for version in there.used), default=0))


def _latest_or_next(store: Store, ref: ArtifactRef, digest: str) -> str:
    """The latest version if it has this content, else the next integer: both from one listing."""
    there = versions(store, ref)
    if there.in_use and read_ref(store, ref.at(there.in_use[-1])) == digest:
        return there.in_use[-1]
    return _after(there)


def _claim(store: Store, ref: ArtifactRef, digest: str, signing: Signing | None) -> Published:
    """Creates the reference. Every round that loses a free number to another publisher tries the next one.

    The signature of a lost number stays: it is for other content than the reference there, so it says nothing.
    """
    while True:
        with _nothing_published(store, ref):
            wanted = ref.at(ref.version or _latest_or_next(store, ref, digest))
            if signing is not None:
                signing(wanted, digest)
        if _put_ref(store, wanted, digest):
            return Published(wanted, digest, created=True)
        with _nothing_published(store, ref):
            if read_ref(store, wanted) == digest:
                return Published(wanted, digest, created=False)
            if ref.version is not None:
                _check_free(store, ref, digest)


def _put_ref(store: Store, ref: ArtifactRef, digest: str) -> bool:
    try:
        return store.put_if_absent(ref_key(ref), f"{digest}\n".encode("ascii"))
    except OSError as error:
        # The last fsync may fail when the reference is in place already.
        outcome = f"Whether {ref} is published is not certain."
        try:
            if not store.exists(ref_key(ref)):
                outcome = "Nothing was published."
        except OSError:
            pass
        raise write_error(f"publish {ref} to {store.where('')}", error, outcome) from error


@contextmanager
def _nothing_published(store: Store, ref: ArtifactRef) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(f"publish {ref} to {store.where('')}", error, "Nothing was published.") from error
