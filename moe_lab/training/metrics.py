"""The metrics of a run as JSON Lines, cut back to the checkpoint when the run resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from moe_lab.files import append_line, read_lines, sync, write_text
from moe_lab.training.processes import is_first

TIMING_FIELDS = ("units_per_second", "seconds", "time")
"""The fields that differ between two runs of one config; all others are equal to the bit."""


class MetricsLog:
    """One line per logged step, in order, no step twice."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def cut_back(self, step: int) -> dict[str, Any]:
        """Drops the lines after `step`, and a torn one; returns the last line kept, {} if there is none."""
        lines = read_lines(self._path)
        kept = [line for line in lines if line is not None and line.get("step", math.inf) <= step]
        if len(kept) < len(lines) and is_first():
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        return kept[-1] if kept else {}

    def append(self, line: dict[str, Any]) -> dict[str, Any]:
        """Adds a line and returns it as written: null for what is not finite, which JSON cannot hold."""
        clean = {key: None if _not_finite(value) else value for key, value in line.items()}
        if is_first():
            append_line(self._path, json.dumps(clean, allow_nan=False))
        return clean

    def sync(self) -> None:
        """Makes the lines so far survive a power cut; called before a checkpoint that stands for them."""
        if is_first() and self._path.exists():
            sync(self._path)


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
