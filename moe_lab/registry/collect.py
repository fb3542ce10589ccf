"""Collecting garbage: content that no reference reaches, and what killed publishers left in `tmp/`.

Nothing is deleted on a doubt. A file goes in two steps: it is set aside under another name, the references are
read once more, and only then is it removed; one that was touched or came into use meanwhile gets its name back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from moe_lab.errors import Damaged, LabError, Refused
from moe_lab.registry.failures import write_error
from moe_lab.registry.lineage import ancestors
from moe_lab.registry.manifest import Manifest
from moe_lab.registry.marks import read_mark
from moe_lab.registry.read import read_manifest
from moe_lab.registry.references import blob_key, content_digest, manifest_key
from moe_lab.registry.refs import read_ref, split_key
from moe_lab.registry.stores import LocalStore, Store
from moe_lab.registry.stores.sweep import FileStatus, SweepFolder

GRACE_SECONDS = 7 * 24 * 3600
_BATCH = 256


@dataclass(frozen=True)
class Collected:
    """What `gc` removed, or with `dry_run` would have.

    Attributes:
        files: their keys, such as `blobs/sha256-<hex>`.
        bytes: what that frees on disk.
        young: unused files that stay for now, because they are younger than the grace period.
    """

    files: tuple[str, ...]
    bytes: int
    young: int
    dry_run: bool


def gc(store: Store, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> Collected:
    """See `Registry.gc`."""
    if not isinstance(store, LocalStore):
        raise Refused(
            f"{store.where('')} cannot be collected: only folders can. Mirror it to a fresh place, which gets "
            "only what references reach."
        )
    if not grace_seconds >= 0:
        raise LabError(f"a grace period of {grace_seconds:g} seconds is not possible; give 0 or more.")
    sweep = _Sweep(SweepFolder(store))
    with sweep.stops_safely(put_back=not dry_run):
        sweep.recover(dry_run)
        sweep.plan(int(grace_seconds * 1e9))
        if not dry_run:
            sweep.run()
    gone = list(sweep.planned) if dry_run else sweep.removed
    return Collected(tuple(sorted(gone)), _freed(sweep.planned, gone), sweep.young, dry_run)


def _freed(statuses: dict[str, FileStatus], gone: Collection[str]) -> int:
    """Bytes of the files whose last name is gone; a publisher that was killed can leave two names of one file."""
    names: dict[tuple[int, int], int] = {}
    for key in gone:
        names[statuses[key].inode] = names.get(statuses[key].inode, 0) + 1
    last = {statuses[key].inode: statuses[key] for key in gone}
    return sum(status.size for inode, status in last.items() if names[inode] >= status.links)


@dataclass
class _Used:
    """What references reach. Grows with each reading: published versions never change."""

    folder: SweepFolder
    keys: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)

    def read(self) -> None:
        """Reads the references that are new. Anything that cannot be understood might use something: an error."""
        for key in self.folder.list("refs"):
            if key in self.known:
                continue
            entry = split_key(key)
            if entry is None:
                raise Damaged(f"{self.folder.where(key)!a} is neither a reference nor a mark of retirement; remove it.")
            ref, mark = entry
            if mark is not None:
                read_mark(self.folder, mark)
            else:
                self._reach(read_ref(self.folder, ref), str(ref))
            self.known.add(key)

    def _reach(self, digest: str, label: str) -> None:
        """Marks an artifact and its ancestors, as far as they are here."""
        if manifest_key(digest) in self.keys:
            return
        manifest = read_manifest(self.folder, digest, label)
        self.keys.add(manifest_key(digest))
        self._mark_blobs(manifest)
        for above in ancestors(self.folder, manifest, lambda _, child: f"a parent of {child}", self.keys):
            self._mark_blobs(above)

    def _mark_blobs(self, manifest: Manifest) -> None:
        self.keys.update(blob_key(chunk) for record in manifest.records.values() for chunk in record.chunks)


class _Sweep:
    """One collection: what is used, what is planned, and how far it got."""

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self.used = _Used(folder)
        self.cutoff = 0
        self.planned: dict[str, FileStatus] = {}
        self.removed: list[str] = []
        self.young = 0

    def recover(self, dry_run: bool) -> None:
        """Gives names back to what a killed collection had set aside, in use or not; a dry run only looks there."""
        for place, key in self.folder.left_aside().items():
            if dry_run:
                self.folder.aside[key] = place
            else:
                self.folder.put_back(key, place)

    def plan(self, grace_ns: int) -> None:
        # The clock first: whoever touches a file from here on is seen to have done so.
        self.cutoff = self.folder.clock_ns() - grace_ns
        self.used.read()
        for key, place in self._candidates():
            status = self.folder.status(place)
            if status is None:
                continue
            if status.modified_ns < self.cutoff:
                self.planned[key] = status
            else:
                self.young += 1

    def _candidates(self) -> Iterator[tuple[str, str]]:
        """Unused files: their keys, and where they are, which for a dry run may be aside."""
        aside = self.folder.aside
        for folder in ("manifests", "blobs"):
            there = {key: key for key in self.folder.list(folder)}
            for key, place in {**aside, **there}.items():
                if not key.startswith(f"{folder}/") or key in self.used.keys:
                    continue
                if content_digest(key) is None:
                    raise Damaged(f"{self.folder.where(key)!a} is not a file of the registry; remove it.")
                yield key, place
        yield from ((key, key) for key in self.folder.list("tmp") if key not in aside.values())

    def run(self) -> None:
        scratch = [key for key in self.planned if key.startswith("tmp/")]
        content = [key for key in self.planned if not key.startswith("tmp/")]
        for start in range(0, len(content), _BATCH):
            self._collect(content[start : start + _BATCH])
        for key in scratch:
            if self._old(key):
                self.folder.remove(key)
                self.removed.append(key)

    def _collect(self, keys: Sequence[str]) -> None:
        # Before as well, so that what was published since the last look is not even set aside.
        self.used.read()
        for key in keys:
            if key in self.used.keys or not self._old(key):
                continue
            self.folder.set_aside(key)
            if not self._old(self.folder.aside[key]):
                self.folder.put_back(key)
        self.used.read()
        for key in list(self.folder.aside):
            if key in self.used.keys:
                self.folder.put_back(key)
            else:
                self.folder.drop(key)
                self.removed.append(key)

    def _old(self, place: str) -> bool:
        """Looked at anew each time: a publisher that finds a file touches it before it relies on it."""
        status = self.folder.status(place)
        return status is not None and status.modified_ns < self.cutoff

    @contextmanager
    def stops_safely(self, put_back: bool) -> Iterator[None]:
        """Whatever stops a collection, an interruption too: first what is set aside gets its name back."""
        try:
            yield
        except BaseException as error:
            for key in list(self.folder.aside) if put_back else ():
                with suppress(OSError, Damaged):
                    self.folder.put_back(key)
            if isinstance(error, LabError):
                raise type(error)(f"{self._outcome()}: {error}") from None
            if isinstance(error, OSError):
                outcome = f"{self._outcome().capitalize()}."
                raise write_error(f"collect garbage in {self.folder.where('')}", error, outcome) from error
            raise

    def _outcome(self) -> str:
        gone = f"{len(self.removed)} unused files were deleted, then it stopped"
        return gone if self.removed else "nothing was deleted"
