"""Loads the small training by path: test folders are no packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def mlp_run() -> ModuleType:
    path = Path(__file__).with_name("mlp_run.py")
    spec = importlib.util.spec_from_file_location("training_test_mlp_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
