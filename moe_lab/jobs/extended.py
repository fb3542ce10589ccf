"""The router that a config extends, by name or in the run folder where it was trained."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path

from moe_lab.artifacts.router import QuestionRouterArtifact, RouterArtifact, read_router
from moe_lab.compose.lockfile import LockedPart, pin
from moe_lab.errors import Damaged, LabError
from moe_lab.jobs.workspace import Workspace
from moe_lab.registry import Registry
from moe_lab.training.ledger import read_result


@dataclasses.dataclass(frozen=True)
class ExtendedRouter:
    """A trained router, published or not."""

    registry: Registry
    part: LockedPart

    @cached_property
    def artifact(self) -> RouterArtifact | QuestionRouterArtifact:
        """What its manifest says."""
        return read_router(self.registry.manifest(self.part.digest), self.part.ref)


def find_extended(workspace: Workspace, extends: str, base: Path) -> ExtendedRouter:
    """A published router by name, or the one in a run folder."""
    for folder in (base / extends, Path(extends), workspace.lab.runs / extends):
        if (folder / "result.json").is_file():
            result = read_result(folder)
            if result is None:
                raise Damaged(
                    f"{folder / 'result.json'} is empty or broken; train that router again: moe-lab train CONFIG"
                )
            if "candidate" not in result:
                raise LabError(f"{folder}: made no router; name the run folder of a router")
            staging = Registry(folder / "candidate", create=False)
            if (kind := staging.manifest(result["candidate"]).kind) != "router":
                raise LabError(f"{folder}: made a {kind}; name the run folder of a router")
            return ExtendedRouter(staging, LockedPart(ref=folder.name, digest=result["candidate"]))
    return ExtendedRouter(workspace.registry, pin(workspace.registry, extends, "router"))
