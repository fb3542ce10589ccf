"""Ways to compute the routed layer, all equal in value and in every gradient: see `expert_ffn`.

A backend is a file here, or a folder with an `__init__.py`, that defines `BACKEND`. Importing it imports nothing heavy:
specs read this table.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import MappingProxyType

from moe_lab.nn.backend import Backend


def _find_backends() -> Iterator[Backend]:
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        backend = importlib.import_module(f"{__name__}.{module.name}").BACKEND
        assert isinstance(backend, Backend), f"{module.name}: BACKEND is no Backend"
        yield backend


BACKENDS: MappingProxyType[str, Backend] = MappingProxyType({backend.name: backend for backend in _find_backends()})
"""By name."""

COMPOSABLE: tuple[str, ...] = ("auto", *(backend.name for backend in BACKENDS.values() if backend.composable))
"""What a composition may say."""
