"""Imports contributed code by path, under a private package name.

The name keeps `modules`, `routers` and `distill` from becoming top-level imports, where they would collide
with other people's packages. It is a package, so that relative imports inside the folder work.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from moe_lab.errors import LabError, did_you_mean
from moe_lab.lab.contributions import Contribution, singular

ROOT = "moe_lab_contributions"


def load(contribution: Contribution) -> type:
    """Imports the file a manifest names in `implementation: file.py:ClassName` and returns the class.

    Raises:
        LabError: nothing is named, or the file or class is missing, or the code fails while it is imported.
    """
    named = contribution.manifest.get("implementation")
    if not isinstance(named, str) or ".py:" not in named:
        raise LabError(f"{contribution.path}: the manifest names no code. Add `implementation: file.py:ClassName`.")
    file, _, class_name = named.partition(":")
    path = contribution.path / file
    if not path.is_file():
        raise LabError(f"{path}: no such file, but the manifest says implementation: {named}. Mend either.")
    module = _import(contribution, path)
    contributed = getattr(module, class_name, None)
    if not isinstance(contributed, type):
        classes = [name for name, value in vars(module).items() if _defined_in(module, value)]
        raise LabError(f"{path}: no class {class_name}.{did_you_mean(class_name, classes)}")
    return contributed


def _import(contribution: Contribution, path: Path) -> ModuleType:
    package = f"{ROOT}.{contribution.category}.{contribution.name}"
    if package in sys.modules and list(sys.modules[package].__path__) != [str(contribution.path)]:
        _forget(package)
    importlib.invalidate_caches()
    for name, folder in ((ROOT, None), (package.rpartition(".")[0], None), (package, contribution.path)):
        if name not in sys.modules:
            sys.modules[name] = _namespace(name, folder)
    try:
        return importlib.import_module(f"{package}.{path.stem}")
    except Exception as error:
        _forget(package)
        raise LabError(
            f"{_line_in(contribution.path, error) or path}: this {singular(contribution.category)} cannot be "
            f"imported: {type(error).__name__}: {error}"
        ) from error


def _namespace(name: str, folder: Path | None) -> ModuleType:
    """Returns a package without code of its own, whose modules are found in `folder`."""
    package = ModuleType(name)
    package.__path__ = [str(folder)] if folder else []
    return package


def _forget(package: str) -> None:
    for name in list(sys.modules):
        if name == package or name.startswith(f"{package}."):
            del sys.modules[name]


def _defined_in(module: ModuleType, value: object) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__


def _line_in(folder: Path, error: Exception) -> str | None:
    """Returns the file and line inside `folder` where the import failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    return f"{inside[-1].filename}:{inside[-1].lineno}" if inside else None
