"""`moe-lab eval --without NAME` equals composing without NAME, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_lab.cli import main
from tests.jobs.test_study import evaluation_folder
from tests.jobs.tiny import COMPOSITION, EVALUATION

pytestmark = pytest.mark.slow
ROUTERS = ["lab/gain", "lab/domain", "lab/topk"]


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("name", ["north/code", "south/prose"])
def test_opting_out_equals_composing_without(tiny_lab: Path, router: str, name: str) -> None:
    modules = ["north/code", "south/prose", "north/code-mini"]
    kept = [module for module in modules if module != name]
    figures = {}
    for label, composed, options in (("all", modules, ["--without", name]), ("fewer", kept, [])):
        listed = f"[{', '.join(composed)}]"
        (tiny_lab / "configs" / f"{label}.yaml").write_text(
            COMPOSITION.format(name=label, modules=listed, router=router)
        )
        config = EVALUATION.replace("composition.yaml", f"{label}.yaml").replace("[lab/domain]", "[]")
        (tiny_lab / "configs" / f"eval-{label}.yaml").write_text(config)
        assert main(["--lab", str(tiny_lab), "eval", f"eval-{label}", *options]) == 0
        results = json.loads((evaluation_folder(tiny_lab) / "results.json").read_text())
        figures[label] = {
            "cells": [cell for cell in results["matrix"] if cell["system"] == "composed"],
            "points": [
                (point["cost"], point["bits_per_byte"])
                for curve in results["curves"]
                if curve["role"] == "learned"
                for point in curve["points"]
            ],
            "samples": results["samples"],
        }
    assert figures["all"] == figures["fewer"]
    assert figures["all"]["cells"]


def test_a_name_that_is_not_composed_is_refused(tiny_lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--lab", str(tiny_lab), "eval", "evaluation", "--without", "north/cod"]) == 2
    assert 'it is not in the composition. Did you mean "north/code"?' in capsys.readouterr().err
