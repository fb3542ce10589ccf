"""The registry as its users see it: publish, resolve, read, list, verify."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from moe_lab.errors import Damaged, LabError, NotFound, Refused, Unavailable, classify
from moe_lab.files import digest_of
from moe_lab.registry.catalogue import Entry, cache_file, catalogue
from moe_lab.registry.collect import GRACE_SECONDS, Collected, gc
from moe_lab.registry.diff import ArtifactDiff, diff
from moe_lab.registry.exact_json import ManifestProblem, canonical
from moe_lab.registry.failures import describe_error
from moe_lab.registry.fetch import Fetched, fetch
from moe_lab.registry.keys import OwnerKey, find_key, load_key
from moe_lab.registry.lineage import LineageNode, lineage
from moe_lab.registry.manifest import Manifest, parse
from moe_lab.registry.mapped import map_tensor
from moe_lab.registry.mirror import Mirrored, mirror
from moe_lab.registry.mirror import OnProgress as MirrorProgress
from moe_lab.registry.publish import Published, publish
from moe_lab.registry.read import read_manifest, read_tensor
from moe_lab.registry.references import ArtifactRef, is_digest, manifest_key
from moe_lab.registry.refs import Resolved, read_ref, resolve_ref, versions, warn_if_retired
from moe_lab.registry.retire import Retirement, retire, unretire
from moe_lab.registry.signatures import Signature, problem_with, sign, signatures, signatures_of_digest
from moe_lab.registry.stores import Store, open_store, origin
from moe_lab.registry.verify import OnProgress, VerifyReport, verify

if TYPE_CHECKING:
    import numpy as np

    from moe_lab.registry.trust import Trust, TrustPolicy

    Array = np.ndarray[Any, Any]

Source = str | ArtifactRef | Mapping[str, Any]
"""An artifact to read: a reference, a digest, or (cheapest for many tensors) its manifest."""


class Registry:
    """Published artifacts in a folder or bucket that many teams share; `docs/registry-format.md` is its exact layout.

    A reader sees an artifact whole or not at all, and never a byte that differs from the one published.

    Args:
        path: a folder on a local disk or NFS, or `s3://bucket/prefix` or `gs://bucket/prefix`.
        create: make the folder if it is not there; otherwise that is `NotFound`.
        trust: a policy, or its file: what it refuses is not read. None believes everything that is whole.
        key: the key, or its name, that signs what is published. None publishes unsigned.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        create: bool = True,
        *,
        trust: TrustPolicy | str | os.PathLike[str] | None = None,
        key: OwnerKey | str | None = None,
    ) -> None:
        self.store: Store = open_store(path, create)
        self.key = key
        if isinstance(key, str):
            find_key(key)
        self.trust = None if trust is None else _trust(self.store, trust)

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
            LabError: the version holds other content, a field is not JSON, the disk is full, the trust policy
                wants a signature that this key cannot make, ...
        """
        ref = ArtifactRef(owner, name, version)
        key = self.signer()
        if self.trust is not None:
            self.trust.require_signer(ref, key.public if key else None)
        signing = None if key is None else partial(sign, self.store, key=key)
        return publish(self.store, ref, manifest_fields, tensors, block_tensors, signing)

    def signer(self) -> OwnerKey | None:
        """The key that signs what is published; it is read only now, for it may need a passphrase."""
        if isinstance(self.key, str):
            self.key = load_key(self.key)
        return self.key

    def sign(self, ref: str | ArtifactRef, key: OwnerKey) -> tuple[Signature, bool]:
        """Adds a signature to a published version, trusted or not; False where it had this one."""
        resolved = self._resolve(ref)
        if resolved.ref is None:
            raise LabError(f"{ref} is a digest, and a signature is for a name: name the version, owner/name@version.")
        whole = replace(resolved.ref, width=None)
        with self._reading():
            read_manifest(self.store, resolved.digest, str(whole))
        try:
            created = sign(self.store, whole, resolved.digest, key)
        except OSError as error:
            where = self.store.where("")
            raise classify(error)(
                f"cannot sign {whole} in {where}: {describe_error(error)}; mend that and sign again."
            ) from error
        return Signature(whole, resolved.digest, key.public), created

    def signatures(self, source: str | ArtifactRef) -> list[tuple[Signature, str | None]]:
        """Who signed a version, trusted or not, or a digest under any name; each with its problem, or None."""
        resolved = self._resolve(source)
        with self._reading():
            if resolved.ref is None:
                signed = signatures_of_digest(self.store, resolved.digest)
            else:
                signed = signatures(self.store, resolved.ref, resolved.digest)
            return [(claim, problem_with(self.store, claim)) for claim in signed]

    def resolve(self, text: str | ArtifactRef) -> Resolved:
        """What `owner/name[@version][:width]` or `sha256-<hex>` means now; without a version, the highest.

        Retired versions are passed over, or, asked for by number, come with a `RetiredWarning`. What the trust
        policy refuses is `Refused`, and never a reason to take an older version.
        """
        resolved = self._trusted(text)
        warn_if_retired(resolved, stacklevel=2)
        return resolved

    def manifest(self, source: str | ArtifactRef) -> Manifest:
        """Reads, hashes and checks a manifest: a dict with `digest`, `label` and typed tensor `records`."""
        resolved = self._trusted(source)
        warn_if_retired(resolved, stacklevel=2)
        return read_manifest(self.store, resolved.digest, str(resolved.ref or resolved.digest))

    def tensor(self, source: Source, name: str, rows: slice | None = None) -> Array:
        """Reads one tensor, or a run of indices of its axis 0, touching only the chunks that hold them."""
        return read_tensor(self.store, self._manifest(source), name, rows)

    def mapped_tensor(self, source: Source, name: str) -> Array:
        """A tensor in the registry's own files where it can be mapped, which other processes share; else it is read.

        Its pages come from the files whenever they are touched, so those must stay as they are: nothing in this program
        ever changes one, and a deleted one lasts as long as the array on a local disk. `MOE_LAB_MAP=off` always reads.
        """
        manifest = self._manifest(source)
        mapped = None if os.environ.get("MOE_LAB_MAP") == "off" else map_tensor(self.store, manifest, name)
        return read_tensor(self.store, manifest, name, None) if mapped is None else mapped

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

    def verify(self, ref: str | ArtifactRef | None = None, progress: OnProgress | None = None) -> VerifyReport:
        """Hashes every byte of one artifact, or of the whole registry with None, and lists what is wrong.

        Signatures are checked too; with a trust policy, what it refuses is among the problems.

        Args:
            progress: called with the files and bytes done so far.
        """
        one = None if ref is None else self._resolve(ref)
        with self._reading():
            report = verify(origin(self.store), one, progress)
            refused = [] if self.trust is None else self.trust.problems(one)
        return replace(report, problems=(*report.problems, *refused))

    def unknown_owners(self) -> Sequence[str]:
        """Owners that the trust policy lists and who published nothing here, told in one line each."""
        if self.trust is None:
            return []
        with self._reading():
            return self.trust.unknown_owners()

    def fetch(self, ref: str | ArtifactRef) -> Fetched:
        """Reads an artifact whole through the cache, so that it can be used without a network."""
        resolved = self._trusted(ref)
        with self._reading():
            return fetch(self.store, resolved)

    def in_use(self, title: str) -> Iterator[Resolved]:
        """The versions of `owner/name` that are not retired, highest first, trusted or not, but for damaged ones."""
        name = ArtifactRef.parse(title)
        with self._reading():
            for version in reversed(versions(self.store, name).in_use):
                with suppress(Damaged, Unavailable, FileNotFoundError):
                    yield Resolved(name.at(version), read_ref(self.store, name.at(version)))

    def lineage(self, ref: str | ArtifactRef) -> LineageNode:
        """The tree of ancestors that the manifests name, as far as this registry holds them."""
        resolved = self._trusted(ref)
        return lineage(self.store, str(resolved.ref or resolved.digest), resolved.digest)

    def retire(self, ref: str | ArtifactRef, reason: str) -> Retirement:
        """Takes one version out of use: it loads with a warning, and a name without a version passes over it.

        Does nothing to one that is retired already. Its number is never used again.
        """
        with self._reading():
            return retire(self.store, _as_ref(ref), reason)

    def unretire(self, ref: str | ArtifactRef, reason: str = "") -> Retirement:
        """Takes a version back into use; one that is in use stays so."""
        with self._reading():
            return unretire(self.store, _as_ref(ref), reason)

    def gc(self, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> Collected:
        """Deletes content that no published version and no ancestor of one uses, and left-over temporary files.

        Retired versions count as published. Anything that cannot be read stops it before anything is deleted.

        Args:
            grace_seconds: files younger than this stay, by the clock of the disk: somebody may be publishing
                them. With 0 nobody else should be publishing.
            dry_run: only say what a real run would delete.
        """
        return gc(origin(self.store), grace_seconds, dry_run)

    def mirror(
        self,
        target: str | os.PathLike[str] | Registry,
        refs: Sequence[str | ArtifactRef] | None = None,
        parents: bool = False,
        progress: MirrorProgress | None = None,
    ) -> Mirrored:
        """Copies artifacts with all they need, signatures and retirements included, hashing every byte.

        Overwrites nothing, and goes on where an earlier call was stopped. What cannot be copied, such as a
        version that has other content there, is told in `problems` and does not stop the others.

        Args:
            refs: without a version the newest one is meant; a module brings its trunk, and a router its trunk and its
                modules. None copies every version of everything.
            parents: also the manifests of all ancestors, without their tensors, so that `lineage` is whole there.
            progress: called with the artifact, and the files and bytes written so far.
        """
        other = target if isinstance(target, Registry) else Registry(target)
        wanted = None if refs is None else [_as_ref(ref) for ref in refs]
        with self._reading():
            refusal = None if self.trust is None else self.trust.problem
            return mirror(origin(self.store), origin(other.store), wanted, parents, progress, refusal)

    def diff(self, old: str | ArtifactRef, new: str | ArtifactRef) -> ArtifactDiff:
        """In which sections and tensors the second artifact differs from the first, and what they share."""
        sides = [self._trusted(old), self._trusted(new)]
        return diff(*(read_manifest(self.store, side.digest, str(side.ref or side.digest)) for side in sides))

    def require_pinned(self, text: str, digest: str) -> None:
        """Refuses a pin, a name with its digest, that the trust policy does not believe; without one, none.

        A retired version stays pinned. A name that means other content now is refused.
        """
        if self.trust is None:
            return
        resolved = self._trusted(text)
        if resolved.digest != digest:
            raise Refused(f"{text} is pinned to {digest}, but here it is {resolved.digest}; compose it again.")

    def _trusted(self, text: str | ArtifactRef) -> Resolved:
        resolved = self._resolve(text)
        if self.trust is not None:
            with self._reading():
                self.trust.require(resolved, newest="@" not in str(text))
        return resolved

    def _resolve(self, text: str | ArtifactRef) -> Resolved:
        with self._reading():
            if isinstance(text, ArtifactRef):
                return resolve_ref(self.store, text)
            if not text.startswith("sha256-") or "/" in text:
                return resolve_ref(self.store, ArtifactRef.parse(text))
            if not is_digest(text):
                raise LabError(f"{ascii(text)[:100]} is not a digest: sha256- and 64 lowercase hex digits.")
            if not self.store.exists(manifest_key(text)):
                raise NotFound(f"the registry has no artifact {text}; `list` shows what it has.")
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
            raise classify(error)(
                f"registry {self.store.where('')} cannot be read: {describe_error(error)}; "
                f"{getattr(error, 'advice', 'check its permissions')}."
            ) from error

    def _believed(self, row: Entry) -> Entry:
        if self.trust is None or row.problem or not (reason := self.trust.problem(Resolved(row.ref, row.digest))):
            return row
        return Entry(row.ref, row.digest, retired=row.retired, problem=f"untrusted: {reason}")

    def list(self, cached: bool = True) -> list[Entry]:
        """Every published version, retired ones included, by owner, name and version.

        One that is damaged is listed with its problem instead of hiding the others. A missing manifest is noticed, a
        changed one only when it is first read; `verify` reads everything.

        Args:
            cached: keep what was read in the user's cache folder, if it is much, and use what is there.
        """
        with self._reading():
            rows = catalogue(origin(self.store), cache_file(self.store) if cached else None)
            return [self._believed(row) for row in rows]


def _as_ref(ref: str | ArtifactRef) -> ArtifactRef:
    return ref if isinstance(ref, ArtifactRef) else ArtifactRef.parse(ref)


def _trust(store: Store, policy: TrustPolicy | str | os.PathLike[str]) -> Trust:
    from moe_lab.registry.trust import Trust, load_policy  # brings pydantic

    if isinstance(policy, str | os.PathLike):
        return Trust(store, load_policy(policy), os.fspath(policy))
    return Trust(store, policy, "the trust policy")
