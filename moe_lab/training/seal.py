"""Which checkpoints count: those with a seal. Light, so that whoever only asks how far a run is need not load Orbax."""

from __future__ import annotations

from pathlib import Path

CHECKPOINTS = "checkpoints"
SEAL = "seal.json"


def sealed_steps(checkpoints: Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a run's `checkpoints` folder, in no order."""
    sealed = (seal.parent.name for seal in checkpoints.glob(f"*/{SEAL}"))
    return [int(name) for name in sealed if name.isdigit()]
