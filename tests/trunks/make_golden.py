"""Writes the golden logits of all families: python -m tests.trunks.make_golden [CASE]... (needs moe-lab[peers]).

Each file holds the logits at some positions, the tensors' shapes, and the config as transformers itself writes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.trunks.cases import CASES, KEPT, tokens
from tests.trunks.reference import reference_logits, reference_model, reference_weights

GOLDEN = Path(__file__).parent / "golden"


def make(names: Sequence[str]) -> None:
    import transformers

    GOLDEN.mkdir(exist_ok=True)
    for name in names or CASES:
        config = CASES[name]
        model = reference_model(config)
        logits = reference_logits(model, tokens())
        written = {key: value for key, value in model.config.to_diff_dict().items() if key != "transformers_version"}
        about = {
            "config": config,
            "written": written,
            "shapes": {name: list(weight.shape) for name, weight in reference_weights(model).items()},
            "transformers": transformers.__version__,
        }
        np.savez_compressed(
            GOLDEN / f"{name}.npz", logits=logits[KEPT], largest=np.abs(logits).max(), about=json.dumps(about)
        )
        print(f"{name}: largest logit {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    make(sys.argv[1:])
