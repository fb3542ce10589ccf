"""A trained artifact before it is published: it waits in its run folder, in the registry's own format.

Publishing copies it, so what was checked is what appears, digest included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from moe_lab.artifacts.artifact import Claim, read_claims
from moe_lab.artifacts.places import without_places
from moe_lab.compose.lockfile import LockedPart
from moe_lab.errors import Damaged
from moe_lab.registry import Registry
from moe_lab.registry.manifest import Manifest
from moe_lab.training import Run
from moe_lab.training.processes import first_goes_first


@dataclasses.dataclass(frozen=True)
class StagedArtifact:
    """An artifact in the run folder where it was made."""

    name: str  # owner/name
    digest: str
    staging: Registry

    @property
    def manifest(self) -> Manifest:
        return self.staging.manifest(self.digest)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Its held-out figures; a router has none."""
        return read_claims(self.manifest)

    def tensors(self) -> dict[str, np.ndarray]:
        return self.staging.tensors(self.manifest)


def stage_artifact(
    run: Run, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], block_tensors: Collection[str] = ()
) -> StagedArtifact:
    """Stores what a run made in the run's own folder, without the places on this machine that its config names."""
    lab = run.path.parent.parent  # of `runs/`
    staging = Registry(run.path / "candidate")
    owner, name = run.name.split("/")
    with first_goes_first(f"staged {run.name}"):
        published = staging.publish(owner, name, None, without_places(fields, lab), tensors, block_tensors)
    return StagedArtifact(run.name, published.digest, staging)


def find_staged(run: Run) -> StagedArtifact:
    """The candidate of a finished run."""
    assert run.done is not None
    return StagedArtifact(run.name, run.done["candidate"], Registry(run.path / "candidate", create=False))


def publish_staged(candidate: StagedArtifact, registry: Registry) -> tuple[LockedPart, bool]:
    """Copies a candidate into the registry under its next version; the flag says whether that was needed."""
    manifest = candidate.manifest
    blocks = {name for name, record in manifest.records.items() if record.blocks}
    owner, name = candidate.name.split("/")
    published = registry.publish(owner, name, None, manifest.sections, candidate.tensors(), blocks)
    if published.digest != candidate.digest:
        raise Damaged(f"{candidate.name}: the published digest differs from the checked one; publish it again")
    return LockedPart(ref=str(published.ref), digest=published.digest), published.created
