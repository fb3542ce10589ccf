"""Resolves a composition into a lockfile that is kept in the lab."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_lab.compose.build import build_model
from moe_lab.compose.lockfile import Lock, resolve
from moe_lab.compose.spec import CompositionSpec
from moe_lab.config import load_config
from moe_lab.files import write_json
from moe_lab.jobs.workspace import Workspace


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
