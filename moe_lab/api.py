"""What notebooks and scripts need: load a composition, and ask it about a text.

from moe_lab.api import load_composition, score_text

model = load_composition("quickstart/composition")
print(score_text(model, "import numpy as np").bits_per_byte)
"""

from __future__ import annotations

from pathlib import Path

from moe_lab.compose.model import ComposedModel
from moe_lab.compose.score import ScoredText, score_text
from moe_lab.jobs.workspace import Workspace
from moe_lab.lab import find_lab

__all__ = ["ComposedModel", "ScoredText", "load_composition", "score_text"]


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
