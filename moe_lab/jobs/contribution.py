"""What every contributed module folder keeps to; its own test calls `check_module_folder`."""

from __future__ import annotations

from pathlib import Path

from moe_lab.config import load_config
from moe_lab.experts.interface import require_ladder
from moe_lab.jobs.spec import ModuleSpec


def check_module_folder(folder: Path) -> ModuleSpec:
    """The config can be read, its ladder ends at its width, and a README tells what it is.

    Raises:
        AssertionError, LabError: what is missing.
    """
    spec = load_config(folder / "module.yaml", kind="module")
    assert isinstance(spec, ModuleSpec)
    require_ladder(spec.ladder, spec.widest, 1, spec.name)
    assert spec.name.endswith(f"/{folder.name}"), f"{spec.name} is not named after its folder, {folder.name}"
    assert (folder / "README.md").read_text(encoding="utf-8").strip(), f"{folder}: README.md is empty"
    return spec
