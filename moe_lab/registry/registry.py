"""The registry as its users see it: publish, resolve, read, list, verify."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moe_lab.errors import LabError
from moe_lab.registry.lineage import LineageNode, lineage, summary_of
from moe_lab.registry.manifest import Manifest, ManifestProblem, canonical, parse
from moe_lab.registry.publish import Published, publish
from moe_lab.registry.read import read_manifest, read_tensor
from moe_lab.registry.references import ArtifactRef, digest_of, is_digest, manifest_key, version_order
from moe_lab.registry.refs import Resolved, read_ref, resolve_ref, retired_reason, split_key, warn_if_retired
from moe_lab.registry.stores import Store, open_store
from moe_lab.registry.verify import Progress, VerifyReport, verify

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Source = str | ArtifactRef | Mapping[str, Any]
"""An artifact to read: a reference, a digest, or (cheapest for many tensors) its manifest."""


@dataclass(frozen=True)
class Entry:
    """One published version in a listing.

    Attributes:
        digest: "" where the reference itself cannot be read.
        retired: the reason for its withdrawal, or None.
        problem: why its manifest cannot be read, or None; then `kind` is "" and `manifest` is empty.
    """

    ref: ArtifactRef
    digest: str
    kind: str = ""
    summary: str = ""
    retired: str | None = None
    problem: str | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)


class Registry:
    """Published artifacts in a folder that many teams share; `docs/registry-format.md` is its exact layout.

    A reader sees an artifact whole or not at all, and never a byte that differs from the one published.

    Args:
        path: a folder on a local disk or NFS.
        create: make the folder if it is not there; otherwise that is a `LabError`.
    """

    def __init__(self, path: str | os.PathLike[str], create: bool = True) -> None:
        self.store: Store = open_store(path, create)

    def publish(
        self,
        owner: str,
        name: str,
        version: str | None,
        manifest_fields: Mapping[str, Any],
        tensors: Mapping[str, Array],
        block_tensors: Collection[str] = frozenset(),
    ) -> Published:
        """Stores an artifact and gives it a name that will never mean anything else.

        Args:
            version: None takes the next free integer, or the latest version if that has exactly this content.
            manifest_fields: `kind` and, as far as they apply, `interface`, `ladder`, `cost`, `lineage`,
                `licence`, `data`, `claims`, `summary`, `config`: JSON values; floats become decimal strings.
            tensors: arrays by name.
            block_tensors: those whose axis 0 counts blocks: a narrower width reads a prefix of them, and
                an artifact with fewer of the same blocks shares their storage.

        Raises:
            LabError: the version holds other content, a field is not JSON, the disk is full, ...
        """
        return publish(self.store, ArtifactRef(owner, name, version), manifest_fields, tensors, block_tensors)

    def resolve(self, text: str | ArtifactRef) -> Resolved:
        """What `owner/name[@version][:width]` or `sha256-<hex>` means now; without a version, the highest.

        Retired versions are passed over, or, asked for by number, come with a `RetiredWarning`.
        """
        resolved = self._resolve(text)
        warn_if_retired(resolved, stacklevel=2)
        return resolved

    def manifest(self, source: str | ArtifactRef) -> Manifest:
        """Reads, hashes and checks a manifest: a dict with `digest`, `label` and typed tensor `records`."""
        resolved = self._resolve(source)
        warn_if_retired(resolved, stacklevel=2)
        return read_manifest(self.store, resolved.digest, str(resolved.ref or resolved.digest))

    def tensor(self, source: Source, name: str, rows: slice | None = None) -> Array:
        """Reads one tensor, or a run of indices of its axis 0, touching only the chunks that hold them."""
        return read_tensor(self.store, self._manifest(source), name, rows)

    def tensors(self, source: Source, blocks: int | None = None) -> dict[str, Array]:
        """Reads all tensors, those in blocks cut to their first `blocks`.

        A tensor with fewer blocks than asked for comes whole; more than any tensor has is a `LabError`.
        """
        manifest = self._manifest(source)
        most = max((record.shape[0] for record in manifest.records.values() if record.blocks), default=0)
        if blocks is not None and not 1 <= blocks <= most:
            raise LabError(f"{manifest.label} cannot be cut to {blocks} blocks: it has {most}.")
        return {
            name: read_tensor(self.store, manifest, name, slice(0, blocks) if record.blocks else None)
            for name, record in manifest.records.items()
        }

    def verify(self, ref: str | ArtifactRef | None = None, progress: Progress | None = None) -> VerifyReport:
        """Hashes every byte of one artifact, or of the whole registry with None, and lists what is wrong.

        Args:
            progress: called with the files and bytes done so far.
        """
        with self._reading():
            return verify(self.store, None if ref is None else self._resolve(ref), progress)

    def lineage(self, ref: str | ArtifactRef) -> LineageNode:
        """The tree of ancestors that the manifests name, as far as this registry holds them."""
        resolved = self._resolve(ref)
        return lineage(self.store, str(resolved.ref or resolved.digest), resolved.digest)

    def _resolve(self, text: str | ArtifactRef) -> Resolved:
        with self._reading():
            if isinstance(text, ArtifactRef):
                return resolve_ref(self.store, text)
            if not text.startswith("sha256-") or "/" in text:
                return resolve_ref(self.store, ArtifactRef.parse(text))
            if not is_digest(text):
                raise LabError(f"{ascii(text)[:100]} is not a digest: sha256- and 64 lowercase hex digits.")
            if not self.store.exists(manifest_key(text)):
                raise LabError(f"the registry has no artifact {text}; `list` shows what it has.")
            return Resolved(None, text)

    def _manifest(self, source: Source) -> Manifest:
        if isinstance(source, Manifest):
            return source
        if isinstance(source, str | ArtifactRef):
            return self.manifest(source)
        try:
            data = canonical(source)
            return parse(data, digest_of(data))
        except (ManifestProblem, TypeError, ValueError) as problem:
            raise LabError(f"this is not a manifest: {problem}.") from None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LabError(
                f"registry {self.store.where('')} cannot be read: {error.strerror}; check its permissions."
            ) from error

    def _entry(self, ref: ArtifactRef, tombstone: bool) -> Entry | None:
        """None where somebody removed the reference since the folder was listed."""
        digest, retired = "", None
        try:
            digest = read_ref(self.store, ref)
            retired = retired_reason(self.store, ref) if tombstone else None
            manifest = read_manifest(self.store, digest, str(ref))
        except FileNotFoundError:
            return None
        except LabError as error:
            return Entry(ref, digest, retired=retired, problem=str(error))
        return Entry(ref, digest, manifest["kind"], summary_of(manifest), retired, None, manifest)

    def list(self) -> list[Entry]:
        """Every published version, retired ones included, by owner, name and version.

        One that is damaged is listed with its problem instead of hiding the others.
        """
        with self._reading():
            found = [item for key in self.store.list("refs") if (item := split_key(key))]
            tombstones = {ref for ref, tombstone in found if tombstone}
            refs = [ref for ref, tombstone in found if not tombstone]
            refs.sort(key=lambda ref: (ref.title, version_order(ref.version or "0")))
            return [entry for ref in refs if (entry := self._entry(ref, ref in tombstones))]
