"""Takes a module from a folder into the registry, after the same admission test as a trained one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_lab.artifacts.card import SectionsForPeople, require_module_sections
from moe_lab.artifacts.derived import mark_imported
from moe_lab.artifacts.module import ModuleArtifact
from moe_lab.compose.lockfile import LockedPart
from moe_lab.errors import LabError, NotFound, Refused, printable
from moe_lab.jobs.admission import Check, CheckResult, check_of_claims, checks_of_weights, require_admission, run_checks
from moe_lab.jobs.spec import DistillRun, ModuleSpec
from moe_lab.jobs.workspace import Workspace
from moe_lab.registry import ArtifactRef, Manifest, Registry
from moe_lab.registry.chunks import describe
from moe_lab.registry.exact_json import ManifestProblem
from moe_lab.registry.interchange import CARD, Card, read_folder
from moe_lab.registry.manifest import Parent, build
from moe_lab.registry.references import manifest_key
from moe_lab.training.processes import first_goes_first

Evidence = tuple[ModuleSpec | DistillRun, Path]
"""A config that names the text of the claims, and the folder that its paths are relative to."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        created: False where this very content was published under this name before.
        measured: whether the claims were measured here, rather than taken over as the card states them.
    """

    part: LockedPart
    created: bool
    measured: bool
    findings: list[CheckResult]


def import_folder(
    workspace: Workspace, folder: Path, name: str | None = None, evidence: Evidence | None = None
) -> Imported:
    """Publishes the module in a folder under the next version of its name.

    The same content under the same name keeps its digest. Anything else is content of its own: it gets the artifact
    that it came from as a parent, and claims that are not measured here are marked `stated_by`.

    Args:
        name: `owner/name` to publish it as; by default the one on the card.
        evidence: measures the claims again.
    """
    card, tensors = read_folder(folder)
    target = _target(card, folder, name)
    _check_sections(card, folder / CARD)
    fields = dict(card.sections)
    manifest = _manifest(fields, tensors, card, folder)
    if manifest.digest != card.digest or card.ref is None or target != _title(card.ref):
        fields = mark_imported(fields, card.ref or card.digest, card.digest, measured=evidence is not None)
        manifest = _manifest(fields, tensors, card, folder)
    with first_goes_first(f"imported {target}"):
        known = _published(workspace.registry, target, manifest.digest)
        if known is not None and evidence is None:
            return Imported(known, created=False, measured=False, findings=[])
        findings = run_checks(_checks(workspace, target, manifest, tensors, evidence))
        require_admission(findings, target)
        if known is not None:
            return Imported(known, created=False, measured=True, findings=findings)
        owner, short = target.split("/")
        done = workspace.registry.publish(owner, short, None, fields, tensors, card.blocks)
        assert done.digest == manifest.digest
    return Imported(LockedPart(ref=str(done.ref), digest=done.digest), done.created, evidence is not None, findings)


def _target(card: Card, folder: Path, name: str | None) -> str:
    if name is not None:
        ref = ArtifactRef.parse(name)
        if ref.version is not None or ref.width is not None:
            raise LabError(
                f"--as {name} names a version or a width; write owner/name, the version is the next free one"
            )
        return ref.title
    if card.ref is None or ArtifactRef.parse(card.ref).width is not None:
        what = "was exported by its digest" if card.ref is None else f"holds one rung, {card.ref}"
        raise LabError(f"{folder} {what}; say what to publish it as: --as owner/name")
    return ArtifactRef.parse(card.ref).title


def _title(ref: str) -> str | None:
    """`owner/name` of a whole artifact; a rung has no name of its own."""
    parsed = ArtifactRef.parse(ref)
    return parsed.title if parsed.width is None else None


def _check_sections(card: Card, path: Path) -> None:
    kind = SectionsForPeople.of(card.sections).kind
    if kind in ("trunk", "router"):
        raise LabError(
            f"{path}: a {kind} has no admission test, so only modules are imported; copy it with moe-lab module mirror"
        )
    require_module_sections(card.sections, str(path))


def _manifest(fields: Mapping[str, Any], tensors: Mapping[str, Any], card: Card, folder: Path) -> Manifest:
    try:
        return build(fields, describe(tensors, card.blocks))[0]
    except ManifestProblem as problem:
        raise LabError(f"{folder / CARD}: {problem}.") from None


def _published(registry: Registry, title: str, digest: str) -> LockedPart | None:
    """The highest version in use that has this content."""
    same = (LockedPart(ref=str(one.ref), digest=digest) for one in registry.in_use(title) if one.digest == digest)
    return next(same, None)


def _checks(
    workspace: Workspace, name: str, manifest: Manifest, tensors: Mapping[str, Any], evidence: Evidence | None
) -> Iterator[Check]:
    yield "trunk", lambda: _has_trunk(workspace.registry, ModuleArtifact.of(manifest, name).trunk)
    yield from checks_of_weights(workspace, name, manifest, tensors)
    if evidence is not None:
        yield check_of_claims(workspace, ModuleArtifact.of(manifest, name), tensors, *evidence)


def _has_trunk(registry: Registry, trunk: Parent) -> str:
    label = printable(trunk.ref)
    if not registry.store.exists(manifest_key(trunk.digest)):
        raise NotFound(
            f"it was made for trunk {label} ({trunk.digest}), which this registry does not have; copy it here"
        )
    kind = registry.manifest(trunk.digest).kind
    if kind != "trunk":
        raise Refused(f"its lineage names {label} as its trunk, which is a {kind}")
    return f"{label} is here"
