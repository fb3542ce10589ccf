"""References: files `refs/<owner>/<name>/<version>` that hold one digest, and what the marks beside them say."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from moe_lab.errors import Damaged, LabError, NotFound, Refused, did_you_mean
from moe_lab.registry.marks import RETIRED, Mark, read_mark, reason_of, split_mark
from moe_lab.registry.references import ArtifactRef, is_digest, is_name, is_version, version_order
from moe_lab.registry.stores import Store

MAX_REF_BYTES = 128


class RetiredWarning(UserWarning):
    """Somebody asked for a version that its owner has withdrawn; it still loads."""


@dataclass(frozen=True)
class Resolved:
    """What a name means now.

    Attributes:
        ref: with its version filled in; None where a digest was asked for.
        digest: of the manifest.
        retired: the owner's reason for withdrawing this version, or None.
    """

    ref: ArtifactRef | None
    digest: str
    retired: str | None = None


def ref_key(ref: ArtifactRef) -> str:
    assert ref.version is not None
    return f"refs/{ref.title}/{ref.version}"


@dataclass(frozen=True)
class Versions:
    """What a registry has of one artifact.

    Attributes:
        published: the versions, lowest first, retired ones included.
        marks: the mark that decides for each version that ever had one; its reference may be gone.
    """

    published: list[str]
    marks: dict[str, Mark]

    @property
    def in_use(self) -> list[str]:
        return [version for version in self.published if not is_retired(self.marks.get(version))]

    @property
    def used(self) -> set[str]:
        """Every number that must not be given away."""
        return {*self.published, *self.marks}


def is_retired(last: Mark | None) -> bool:
    return last is not None and last.kind == RETIRED


def split_key(key: str) -> tuple[ArtifactRef, Mark | None] | None:
    """The reference of a file, with the mark if the file is one; None for a file that is neither."""
    parts = key.split("/")
    if len(parts) != 4:
        return None
    version, kind, number = ("-" in parts[3] and split_mark(parts[3])) or (parts[3], "", 0)
    if not (is_name(parts[1]) and is_name(parts[2]) and is_version(version)):
        return None
    ref = ArtifactRef(parts[1], parts[2], version)
    return ref, Mark(ref, kind, number) if kind else None


def read_ref(store: Store, ref: ArtifactRef) -> str:
    """The digest a reference holds; `FileNotFoundError` without it."""
    return digest_in(store, ref, store.get(ref_key(ref), MAX_REF_BYTES))


def digest_in(store: Store, ref: ArtifactRef, data: bytes | None) -> str:
    """The digest in the bytes of a reference; None stands for something that is no small plain file."""
    text = (data or b"").decode("ascii", errors="replace")
    if not text.endswith("\n") or not is_digest(text[:-1]):
        raise Damaged(
            f"{ref}: {store.where(ref_key(ref))} is damaged: it does not hold one digest. Restore it from a copy."
        )
    return text[:-1]


def retired_reason(store: Store, last: Mark | None) -> str | None:
    """Why a version is retired, by the mark that decides, or None where it is in use.

    A mark that took a version back is read as well: damaged, it may have been another one.
    """
    if last is None:
        return None
    data = read_mark(store, last)
    return reason_of(data) if is_retired(last) else None


def versions(store: Store, ref: ArtifactRef) -> Versions:
    """All published versions of an artifact, and the marks that decide about them."""
    entries = [item for key in store.list(f"refs/{ref.title}") if (item := split_key(key))]
    numbers = [item.version for item, mark in entries if mark is None and item.version is not None]
    marks = {ref.version or "": mark for ref, mark in _last_marks(entries).items()}
    return Versions(sorted(numbers, key=version_order), marks)


def _last_marks(found: list[tuple[ArtifactRef, Mark | None]]) -> dict[ArtifactRef, Mark]:
    """The mark that decides for each version that has one."""
    marks = sorted((mark for _, mark in found if mark), key=lambda mark: mark.order)
    return {mark.ref: mark for mark in marks}


def published(store: Store) -> list[tuple[ArtifactRef, Mark | None]]:
    """Every published version by owner, name and version, each with the mark that decides about it."""
    return published_of(store.list("refs"))


def published_of(keys: Iterable[str]) -> list[tuple[ArtifactRef, Mark | None]]:
    """The same from a listing of `refs/`."""
    entries = [item for key in keys if (item := split_key(key))]
    marks = _last_marks(entries)
    refs = [ref for ref, mark in entries if mark is None]
    refs.sort(key=lambda ref: (ref.title, version_order(ref.version or "0")))
    return [(ref, marks.get(ref)) for ref in refs]


def titles(store: Store) -> set[str]:
    return {entry[0].title for key in store.list("refs") if (entry := split_key(key))}


def resolve_ref(store: Store, ref: ArtifactRef, read_reason: bool = True) -> Resolved:
    """Fills in the version and reads the digest; says what there is where the name leads nowhere."""
    there = versions(store, ref)
    version = ref.version or next(reversed(there.in_use), None)
    if version is None:
        raise _no_version(store, ref, there)
    try:
        digest = read_ref(store, ref.at(version))
    except FileNotFoundError:
        raise _no_version(store, ref, there) from None
    retired = retired_reason(store, there.marks.get(version)) if read_reason else None
    return Resolved(ref.at(version), digest, retired)


def warn_if_retired(resolved: Resolved, stacklevel: int) -> None:
    if resolved.retired is not None:
        warnings.warn(
            f"{resolved.ref} is retired: {resolved.retired}. It still loads; move to a newer version.",
            RetiredWarning,
            stacklevel=stacklevel + 1,
        )


def _no_version(store: Store, ref: ArtifactRef, there: Versions) -> LabError:
    if not there.used:
        return NotFound(f"the registry has no {ref.title}.{did_you_mean(ref.title, titles(store))}")
    if ref.version is None:
        return Refused(
            f"every version of {ref.title} is retired; name one: {ref.title}@{(there.published or ['1'])[-1]}."
        )
    return NotFound(f"{ref.title} has no version {ref.version}. Published: {', '.join(there.published) or 'none'}.")
