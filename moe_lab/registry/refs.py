"""References: files `refs/<owner>/<name>/<version>` that hold one digest, and the tombstones beside them."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

from moe_lab.errors import LabError, did_you_mean
from moe_lab.registry.references import ArtifactRef, is_digest, is_version, version_order
from moe_lab.registry.stores import Store

RETIRED = ".retired"
_MAX_REF_BYTES = 128
_MAX_REASON_BYTES = 64 << 10


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


def split_key(key: str) -> tuple[ArtifactRef, bool] | None:
    """The reference of a file, and whether it is its tombstone; None for a file that is neither."""
    parts = key.split("/")
    if len(parts) != 4 or not is_version(parts[3].removesuffix(RETIRED)):
        return None
    try:
        return ArtifactRef(parts[1], parts[2], parts[3].removesuffix(RETIRED)), parts[3].endswith(RETIRED)
    except LabError:
        return None


def read_ref(store: Store, ref: ArtifactRef) -> str:
    """The digest a reference holds; `FileNotFoundError` without it."""
    key = ref_key(ref)
    data = store.get(key, _MAX_REF_BYTES)
    text = data.decode("ascii", errors="replace")
    if not text.endswith("\n") or not is_digest(text[:-1]):
        raise LabError(
            f"{ref}: {store.where(key)} is damaged: it does not hold one digest. Restore it from a copy."
        )
    return text[:-1]


def retired_reason(store: Store, ref: ArtifactRef) -> str | None:
    """The text of the tombstone on one line, or None where the version is in use."""
    try:
        data = store.get(ref_key(ref) + RETIRED, _MAX_REASON_BYTES)
    except FileNotFoundError:
        return None
    words = re.sub(r"[\x00-\x20\x7f-\x9f]+", " ", data.decode("utf-8", errors="replace")).strip()
    return words or "no reason given"


def versions(store: Store, ref: ArtifactRef) -> tuple[list[str], set[str]]:
    """All published versions of an artifact, lowest first, and the retired ones, which may be gone."""
    published, retired = [], set()
    for key in store.list(f"refs/{ref.title}"):
        found = split_key(key)
        if found is None:
            continue
        version = found[0].version
        assert version is not None
        if found[1]:
            retired.add(version)
        else:
            published.append(version)
    return sorted(published, key=version_order), retired


def titles(store: Store) -> set[str]:
    return {found[0].title for key in store.list("refs") if (found := split_key(key))}


def newest(store: Store, ref: ArtifactRef) -> str | None:
    """The highest version that is not retired."""
    published, retired = versions(store, ref)
    return next((version for version in reversed(published) if version not in retired), None)


def resolve_ref(store: Store, ref: ArtifactRef) -> Resolved:
    """Fills in the version and reads the digest; says what there is where the name leads nowhere."""
    version = ref.version or newest(store, ref)
    if version is None:
        raise _no_version(store, ref)
    try:
        digest = read_ref(store, ref.at(version))
    except FileNotFoundError:
        raise _no_version(store, ref) from None
    return Resolved(ref.at(version), digest, retired_reason(store, ref.at(version)))


def warn_if_retired(resolved: Resolved, stacklevel: int) -> None:
    if resolved.retired is not None:
        warnings.warn(
            f"{resolved.ref} is retired: {resolved.retired}. It still loads; move to a newer version.",
            RetiredWarning,
            stacklevel=stacklevel + 1,
        )


def _no_version(store: Store, ref: ArtifactRef) -> LabError:
    published, retired = versions(store, ref)
    if not published and not retired:
        return LabError(f"the registry has no {ref.title}.{did_you_mean(ref.title, titles(store))}")
    if ref.version is None:
        return LabError(
            f"every version of {ref.title} is retired; name one: {ref.title}@{(published or ['1'])[-1]}."
        )
    return LabError(f"{ref.title} has no version {ref.version}. Published: {', '.join(published) or 'none'}.")
