"""Copying artifacts from one registry to another, with everything they need, each byte hashed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from moe_lab.errors import Damaged, LabError, NotFound, Refused, printable
from moe_lab.registry.chunks import spread
from moe_lab.registry.exact_json import canonical
from moe_lab.registry.failures import write_error
from moe_lab.registry.lineage import LineageNode, ancestors, companions
from moe_lab.registry.manifest import Chunk, Manifest
from moe_lab.registry.marks import Mark, read_mark
from moe_lab.registry.publish import put_content
from moe_lab.registry.read import read_chunk, read_manifest
from moe_lab.registry.references import ArtifactRef, blob_key, manifest_key
from moe_lab.registry.refs import Resolved, published, read_ref, ref_key, resolve_ref, split_key
from moe_lab.registry.signatures import check, signatures
from moe_lab.registry.stores import Store

OnProgress = Callable[[str, int, int], None]
"""Called with the artifact at work, and the files and bytes written so far."""
Refusal = Callable[[Resolved], str | None]
"""Why a trust policy refuses an artifact, or None."""


@dataclass(frozen=True)
class Mirrored:
    """What `mirror` did.

    Attributes:
        copied: references that the target did not have.
        present: references that it had, with the same content.
        files: files written, those beside references included.
        problems: why an artifact or a part of its record was not copied, one line each.
    """

    copied: tuple[str, ...]
    present: tuple[str, ...]
    files: int
    bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def mirror(
    source: Store,
    target: Store,
    refs: Sequence[ArtifactRef] | None = None,
    parents: bool = False,
    progress: OnProgress | None = None,
    refusal: Refusal | None = None,
) -> Mirrored:
    """See `Registry.mirror`."""
    if refs is None:
        wanted = [ref for ref, _ in published(source)]
    else:
        wanted = [resolved.ref for ref in refs if (resolved := resolve_ref(source, ref, read_reason=False)).ref]
    work = _Mirror(source, target, parents, progress, refusal)
    for ref in dict.fromkeys(wanted):
        if not work.try_artifact(ref):
            break
    return Mirrored(tuple(work.copied), tuple(work.present), work.files, work.bytes, tuple(work.problems))


class _Mirror:
    """The tally of one run, and the copying of one artifact at a time."""

    def __init__(
        self, source: Store, target: Store, parents: bool, progress: OnProgress | None, refusal: Refusal | None
    ) -> None:
        self.source = source
        self.target = target
        self.parents = parents
        self.progress = progress
        self.refusal = refusal
        self.copied: list[str] = []
        self.present: list[str] = []
        self.problems: list[str] = []
        self.settled: dict[ArtifactRef, LabError | None] = {}
        self.files = 0
        self.bytes = 0

    def try_artifact(self, ref: ArtifactRef) -> bool:
        """Copies one artifact or notes why not; False where the place itself fails, as it would for the next."""
        error = self._settle(ref)
        if error is not None:
            self.problems.append(str(error))
        return error is None or not isinstance(error.__cause__, OSError)

    def _settle(self, ref: ArtifactRef) -> LabError | None:
        """Copies one artifact, once however often it is needed; why it was not copied, or None."""
        if ref not in self.settled:
            try:
                with self._writing(ref):
                    self._artifact(ref)
            except LabError as error:
                self.settled[ref] = error
            else:
                self.settled[ref] = None
        return self.settled[ref]

    def _artifact(self, ref: ArtifactRef) -> None:
        digest = read_ref(self.source, ref)
        if self.refusal is not None and (reason := self.refusal(Resolved(ref, digest))):
            raise Refused(f"{ref} is untrusted and was not copied: {reason}.")
        there = self._require_free(ref, digest)
        manifest = read_manifest(self.source, digest, str(ref))
        for parent in companions(manifest):
            self._companion(ref, parent, there)
        if not there:
            self._content(manifest)
            if self.parents:
                self._ancestors(manifest)
        self._signatures(ref, digest)
        # Before the reference: a version that is retired must not be offered as the newest even for a moment.
        self._marks(ref)
        if there:
            self.present.append(str(ref))
            return
        if not self._put(ref, ref_key(ref), f"{digest}\n".encode("ascii")):
            self._require_free(ref, digest)
        # As after publishing: a copy that outlasts the grace period of a collection may have lost parts.
        self._content(manifest, only_missing=True)
        self.copied.append(str(ref))

    def _companion(self, ref: ArtifactRef, parent: LineageNode, there: bool) -> None:
        """Copies what an artifact cannot be used without; without it, it is not copied either."""
        left = "" if there else " and was not copied"
        lost = f"{ref} is of no use without {parent.relation} {printable(parent.ref)}{left}"
        if (named := self._reference(parent)) is not None:
            if error := self._settle(named):
                raise type(error)(f"{lost}: {error}") from error.__cause__
            return
        # Its name is gone, or was never here; an artifact finds what it works beside by digest.
        if not self.source.exists(manifest_key(parent.digest)):
            raise NotFound(f"{lost}: {self.source.where('')} has no {parent.digest}. Bring it there first.")
        if self.refusal is not None and (reason := self.refusal(Resolved(None, parent.digest))):
            raise Refused(f"{lost}: it is untrusted: {reason}.")
        self._content(read_manifest(self.source, parent.digest, f"{parent.relation} of {ref}"))

    def _reference(self, parent: LineageNode) -> ArtifactRef | None:
        """The name of a parent, if it still means that artifact here."""
        with suppress(FileNotFoundError, LabError):
            ref = replace(ArtifactRef.parse(parent.ref), width=None)
            if ref.version is not None and read_ref(self.source, ref) == parent.digest:
                return ref
        return None

    def _require_free(self, ref: ArtifactRef, digest: str) -> bool:
        """Whether the target has this version already, with the same content; with other content is an error."""
        try:
            taken = read_ref(self.target, ref)
        except FileNotFoundError:
            return False
        if taken != digest:
            raise Refused(
                f"{ref} is {digest} in {self.source.where('')} and {taken} in {self.target.where('')}; versions never "
                "change, so it was not copied. Publish it there as another version."
            )
        return True

    def _content(self, manifest: Manifest, only_missing: bool = False) -> None:
        blobs = list(manifest.blobs().values())
        if only_missing:
            blobs = [chunk for chunk in blobs if not self.target.exists(blob_key(chunk.digest))]
        for size in spread(self._blob, blobs, sum(chunk.size for chunk in blobs)):
            self._count(manifest.label, size)
        if not (only_missing and self.target.exists(manifest_key(manifest.digest))):
            self._manifest(manifest)

    def _blob(self, chunk: Chunk) -> int | None:
        """Copies one blob and returns its bytes; one that is there is hashed and made young instead."""
        key = blob_key(chunk.digest)
        there = self.target.exists(key)
        data = read_chunk(self.target if there else self.source, chunk)
        put_content(self.target, key, chunk.digest, data)
        return None if there else chunk.size

    def _manifest(self, manifest: Manifest) -> None:
        key, data = manifest_key(manifest.digest), canonical(manifest)
        there = self.target.exists(key)
        put_content(self.target, key, manifest.digest, data)
        self._count(manifest.label, None if there else len(data))

    def _ancestors(self, manifest: Manifest) -> None:
        """Manifests only, which are small: the target can then print the lineage."""

        def call(parent: LineageNode, _: str) -> str:
            return f"{parent.ref}, an ancestor of {manifest.label}"

        for above in ancestors(self.source, manifest, call, {manifest_key(manifest.digest)}):
            self._manifest(above)

    def _signatures(self, ref: ArtifactRef, digest: str) -> None:
        """Those of this very manifest; others are left from a publisher that came second."""
        for claim in signatures(self.source, ref, digest):
            size = check(self.source, claim)
            self._same(ref, claim.path, self.source.get(claim.path, size))

    def _marks(self, ref: ArtifactRef) -> None:
        entries = [split_key(key) for key in self.source.list(f"refs/{ref.title}")]
        marks = [mark for item in entries if item is not None and (mark := item[1]) is not None]
        for mark in sorted((mark for mark in marks if mark.ref == ref), key=lambda mark: mark.order):
            self._mark(ref, mark)

    def _mark(self, ref: ArtifactRef, mark: Mark) -> None:
        data = read_mark(self.source, mark)
        try:
            self._same(ref, mark.key, data)
        except (Refused, Damaged) as error:
            # Both registries retired it on their own. The target's reason stands, and the artifact is as good.
            self.problems.append(str(error))

    def _same(self, ref: ArtifactRef, key: str, data: bytes) -> None:
        if not self._put(ref, key, data) and self.target.get(key, 1 << 20) != data:
            raise Refused(
                f"{ref}: {self.target.where(key)} holds other bytes than {self.source.where(key)}; "
                "it was left as it is. Compare them."
            )

    def _put(self, ref: ArtifactRef, key: str, data: bytes) -> bool:
        created = self.target.put_if_absent(key, data)
        self._count(str(ref), len(data) if created else None)
        return created

    def _count(self, label: str, size: int | None) -> None:
        if size is None:
            return
        self.files += 1
        self.bytes += size
        if self.progress is not None:
            self.progress(label, self.files, self.bytes)

    @contextmanager
    def _writing(self, ref: ArtifactRef) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            action = f"mirror {ref} from {self.source.where('')} to {self.target.where('')}"
            outcome = "What was copied stays, the rest is not there."
            raise write_error(action, error, outcome) from error
