"""Reads everything and compares it with its name: the check against bit rot, lost files and meddling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from moe_lab.errors import Damaged, LabError
from moe_lab.files import digest_of
from moe_lab.registry.chunks import spread
from moe_lab.registry.exact_json import MAX_BYTES
from moe_lab.registry.manifest import MAX_CHUNK_BYTES, Chunk
from moe_lab.registry.marks import read_mark
from moe_lab.registry.read import read_chunk, read_manifest
from moe_lab.registry.references import blob_key, content_digest, manifest_key
from moe_lab.registry.refs import Resolved, read_ref, split_key
from moe_lab.registry.signatures import FOLDER, check_file, signatures_of_digest
from moe_lab.registry.stores import Store

OnProgress = Callable[[int, int], None]
"""Called with the files and the bytes checked so far."""
Job = Callable[[], int]
"""Checks one file and returns its bytes."""


@dataclass(frozen=True)
class VerifyReport:
    """What was read, and each thing wrong with it in one line."""

    files: int
    bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(store: Store, one: Resolved | None, progress: OnProgress | None = None) -> VerifyReport:
    """Checks one artifact, or with None all of them and every other file in the registry's folders."""
    check = _Check(store, progress)
    if one is not None:
        check.artifacts[one.digest] = [str(one.ref or one.digest)]
    else:
        check.run([partial(check.reference, key) for key in store.list("refs")])
    check.run([partial(check.manifest, digest) for digest in sorted(check.artifacts)])
    check.run([partial(check.chunk, digest, size) for digest, size in sorted(check.uses)], parallel=True)
    check.run([partial(check_file, store, path) for path in _signature_files(store, one)], parallel=True)
    if one is None:
        check.run(list(check.unused_files()), parallel=True)
    return VerifyReport(check.files, check.bytes, tuple(check.problems))


def _signature_files(store: Store, one: Resolved | None) -> list[str]:
    if one is None:
        return store.list(FOLDER)
    if one.ref is None:
        return [claim.path for claim in signatures_of_digest(store, one.digest)]
    return store.list(f"{FOLDER}/{one.ref.title}/{one.ref.version}")


class _Check:
    """The tally, and what each stage leaves for the next: digests to labels, then chunks to their uses."""

    def __init__(self, store: Store, progress: OnProgress | None) -> None:
        self.store = store
        self.progress = progress
        self.files = 0
        self.bytes = 0
        self.problems: list[str] = []
        self.artifacts: dict[str, list[str]] = {}
        self.uses: dict[tuple[str, int], list[str]] = {}

    def run(self, jobs: Sequence[Job], parallel: bool = False) -> None:
        for outcome in spread(_outcome, jobs, MAX_CHUNK_BYTES if parallel else 0):
            if isinstance(outcome, str):
                self.problems.append(outcome)
                continue
            self.files += 1
            self.bytes += outcome
            if self.progress is not None:
                self.progress(self.files, self.bytes)

    def reference(self, key: str) -> int:
        entry = split_key(key)
        if entry is None:
            raise Damaged(f"{self.store.where(key)!a} is neither a reference nor a mark of retirement; remove it.")
        ref, mark = entry
        if mark is not None:
            return len(read_mark(self.store, mark))
        digest = read_ref(self.store, ref)
        self.artifacts.setdefault(digest, []).append(str(ref))
        return len(digest) + 1

    def manifest(self, digest: str) -> int:
        label = ", ".join(self.artifacts[digest])
        manifest = read_manifest(self.store, digest, label)
        for chunk in manifest.chunks():
            self.uses.setdefault((chunk.digest, chunk.size), []).append(chunk.use)
        return manifest.size

    def chunk(self, digest: str, size: int) -> int:
        uses = self.uses[digest, size]
        more = f" (and {len(uses) - 1} more uses)" if len(uses) > 1 else ""
        return len(read_chunk(self.store, Chunk(digest, size, f"{uses[0]}{more}")))

    def unused_files(self) -> Iterator[Job]:
        """Files that no sound artifact uses. Harmless, but a damaged one stops who publishes that content."""
        used = {manifest_key(digest) for digest in self.artifacts} | {blob_key(digest) for digest, _ in self.uses}
        for key in (*self.store.list("manifests"), *self.store.list("blobs")):
            if key not in used:
                yield partial(self.unused_file, key)

    def unused_file(self, key: str) -> int:
        digest = content_digest(key)
        if digest is None:
            raise Damaged(f"{self.store.where(key)!a} is not a file of the registry; remove it.")
        data = self.store.get(key, MAX_BYTES if key.startswith("manifests/") else MAX_CHUNK_BYTES)
        if digest_of(data) != digest:
            raise Damaged(f"{self.store.where(key)} is damaged, and no artifact uses it; delete it.")
        return len(data)


def _outcome(job: Job) -> int | str:
    try:
        return job()
    except LabError as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror}: {error.filename!a}"
