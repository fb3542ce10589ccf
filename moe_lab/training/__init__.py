"""One resumable training loop that objectives plug into, with its run folders, checkpoints and ledger.
The loop knows pytrees, never models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_lab.training.ledger import RunRecord, read_ledger
    from moe_lab.training.loop import FitResult, fit
    from moe_lab.training.objective import Objective
    from moe_lab.training.progress import (
        PlainProgress,
        Progress,
        SilentProgress,
        Stage,
        TerminalProgress,
        make_progress,
    )
    from moe_lab.training.runs import Run, open_run
    from moe_lab.training.spec import TrainSpec

_HOMES = {
    "FitResult": "loop",
    "Objective": "objective",
    "PlainProgress": "progress",
    "Progress": "progress",
    "Run": "runs",
    "RunRecord": "ledger",
    "SilentProgress": "progress",
    "Stage": "progress",
    "TerminalProgress": "progress",
    "TrainSpec": "spec",
    "fit": "loop",
    "make_progress": "progress",
    "open_run": "runs",
    "read_ledger": "ledger",
}

__all__ = [
    "FitResult",
    "Objective",
    "PlainProgress",
    "Progress",
    "Run",
    "RunRecord",
    "SilentProgress",
    "Stage",
    "TerminalProgress",
    "TrainSpec",
    "fit",
    "make_progress",
    "open_run",
    "read_ledger",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that listing runs or reading a spec does not import JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
