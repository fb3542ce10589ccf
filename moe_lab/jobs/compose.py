"""Resolves a composition into a lockfile that is kept in the lab, and loads one for Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_lab.compose.build import build_model
from moe_lab.compose.lockfile import Lock, resolve
from moe_lab.compose.model import ComposedModel
from moe_lab.compose.spec import CompositionSpec
from moe_lab.config import load_config
from moe_lab.files import write_json
from moe_lab.jobs.workspace import Workspace
from moe_lab.lab import find_lab


def compose(
    workspace: Workspace, config: Path, overrides: Sequence[str] = (), accept_replaced: bool = False
) -> tuple[Lock, Path]:
    """Resolves a composition into a lockfile in the lab's runs and checks that its parts fit together.

    With `accept_replaced` the router may have learned from other artifacts of the same names; the lockfile says so.
    """
    spec = load_config(config, overrides, kind="composition")
    assert isinstance(spec, CompositionSpec)
    lock = resolve(spec, workspace.registry, accept_replaced)
    build_model(lock, workspace.registry, workspace.lab)
    path = workspace.lab.runs / "compositions" / f"{lock.name}.lock.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, lock.model_dump(mode="json"))
    return lock, path


def load_composition(composition: str | Path, *, lab: str | Path | None = None) -> ComposedModel:
    """Loads a composed model into memory.

    Args:
        composition: a composition's YAML or lockfile by path, or its name in `configs/`. Names without a version mean
            the newest one; a lockfile means the same bytes always.
        lab: the lab's folder; left out, as for the command: MOE_LAB_HOME, or the lab around the current folder.

    Raises:
        LabError: there is no such composition, a part is not in the registry, or the parts do not fit together.
    """
    workspace = Workspace(find_lab(None if lab is None else str(lab)))
    return workspace.load_model(workspace.find_lock(str(composition), Path.cwd()))
