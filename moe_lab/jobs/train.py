"""One training, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moe_lab.config import load_config
from moe_lab.errors import LabError
from moe_lab.jobs.candidate import StagedArtifact
from moe_lab.jobs.join import join_questions
from moe_lab.jobs.module import train_module
from moe_lab.jobs.questions import train_questions
from moe_lab.jobs.router import train_router
from moe_lab.jobs.router_join import join_router
from moe_lab.jobs.shrink import train_child
from moe_lab.jobs.spec import RouterJoinRun
from moe_lab.jobs.trunk import train_trunk
from moe_lab.jobs.workspace import Workspace

TRAININGS: dict[str, Callable[[Workspace, Any, Path], StagedArtifact]] = {
    "trunk": train_trunk,
    "module": train_module,
    "distill": train_child,
    "router": train_router,
    "question_router": train_questions,
    "question_join": join_questions,
}


def train_spec(workspace: Workspace, spec: Any, base: Path) -> StagedArtifact:
    """Trains what the spec describes, by its kind; a finished identical run is returned as it is.

    `base` is the folder that paths in the spec are relative to.
    """
    if isinstance(spec, RouterJoinRun):
        return join_router(workspace, spec, base)
    return TRAININGS[spec.kind](workspace, spec, base)


def load_training(config: Path, overrides: Iterable[str] = ()) -> Any:
    """Reads the config of something that can be trained."""
    spec: Any = load_config(config, overrides)
    if spec.kind not in TRAININGS:
        raise LabError(f"{config}: kind {spec.kind} is not trained; kinds that are: {', '.join(TRAININGS)}")
    return spec
