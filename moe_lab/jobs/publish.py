"""Publishing what was trained; a module only after its admission test."""

from __future__ import annotations

from pathlib import Path

from moe_lab.compose.lockfile import LockedPart
from moe_lab.jobs.admission import check_module, require_admission
from moe_lab.jobs.candidate import StagedArtifact, publish_staged
from moe_lab.jobs.spec import DistillRun, ModuleSpec, Publishable
from moe_lab.jobs.workspace import Workspace
from moe_lab.training.processes import first_goes_first


def publish_checked(
    workspace: Workspace, candidate: StagedArtifact, spec: Publishable, base: Path
) -> tuple[LockedPart, bool]:
    """Publishes a candidate, unless these very bytes are already the latest version; the flag says which."""
    with first_goes_first(f"published {candidate.name}"):
        latest = _latest(workspace, candidate.name)
        if latest is not None and latest.digest == candidate.digest:
            if (key := workspace.registry.signer()) is not None:
                workspace.registry.sign(latest.ref, key)
            return latest, False
        if isinstance(spec, ModuleSpec | DistillRun):
            require_admission(check_module(workspace, candidate, spec, base), candidate.name)
        return publish_staged(candidate, workspace.registry)


def _latest(workspace: Workspace, name: str) -> LockedPart | None:
    """The newest version that is not retired, trusted or not: whoever mends a version comes through here."""
    latest = next(workspace.registry.in_use(name), None)
    return None if latest is None else LockedPart(ref=str(latest.ref), digest=latest.digest)
