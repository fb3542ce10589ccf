"""Finds the model that is to be planned, and keeps its plan in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_lab.config import decode, load_config
from moe_lab.config.overrides import apply_overrides
from moe_lab.config.strict_yaml import load_yaml
from moe_lab.errors import NotFound
from moe_lab.files import write_json
from moe_lab.jobs.workspace import Workspace
from moe_lab.planning.make import document
from moe_lab.planning.model import PlannedModel, model_of_lock, model_of_spec
from moe_lab.planning.plan import Plan
from moe_lab.planning.spec import PlanSettings, PlanSpec


def find_model(workspace: Workspace, text: str, overrides: Sequence[str]) -> PlannedModel:
    """A `kind: plan` config, or a composition by config or lockfile, whose settings are all overrides."""
    path = Path(text) if Path(text).is_file() else None
    if path is None:
        names = [name for name in (f"plans/{text}", text) if _found(workspace, name)]
        path = workspace.lab.find_config(names[0] if names else text)
    if path.suffix != ".json" and load_yaml(path).get("kind") == "plan":
        spec = load_config(path, overrides, kind="plan")
        assert isinstance(spec, PlanSpec)
        return model_of_spec(spec)
    settings = decode(PlanSettings, apply_overrides({}, overrides), "settings of the plan")
    return model_of_lock(workspace.find_lock(str(path), path.parent), workspace.registry, settings)


def _found(workspace: Workspace, name: str) -> bool:
    try:
        workspace.lab.find_config(name)
    except NotFound:
        return False
    return True


def save_plan(plan: Plan, folder: Path, command: str) -> tuple[Path, Path]:
    """Writes plan.json and plan.svg."""
    from moe_lab.reports.plan_picture import write_plan_picture

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", document(plan, command))
    return folder / "plan.json", write_plan_picture(plan, folder / "plan.svg")
