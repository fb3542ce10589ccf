"""`moe-lab eval --without NAME` equals composing without NAME, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from moe_lab.cli import main
from moe_lab.compose.lockfile import pin
from moe_lab.lab import find_lab
from moe_lab.registry import Registry
from tests.compose.published import ROUTERS, Published
from tests.jobs.test_study import evaluation_folder
from tests.jobs.tiny import COMPOSITION, EVALUATION

pytestmark = pytest.mark.slow
CODE, PROSE, MINI = "north/code", "south/prose", "north/code-mini"


@pytest.fixture(scope="module")
def lab(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished lab with two routers more, which know nothing: exactness does not ask what was learnt."""
    lab = Path(shutil.copytree(finished_study, tmp_path_factory.mktemp("opt-out") / "lab", symlinks=True))
    registry = Registry(lab / "registry")
    published = Published(find_lab(str(lab)), registry, pin(registry, "lab/tiny", "trunk"))
    for name in ("cascade", "budget"):
        published.put_router(f"lab/{name}", ROUTERS[name], (CODE, PROSE, MINI))
    return lab


@pytest.mark.parametrize(
    ("router", "name"),
    [("gain", CODE), ("domain", PROSE), ("topk", CODE), ("cascade", PROSE), ("budget", CODE)],
)
def test_opting_out_equals_composing_without(lab: Path, router: str, name: str) -> None:
    modules = [CODE, PROSE, MINI]
    kept = [module for module in modules if module != name]
    figures = {}
    for label, composed, options in (("all", modules, ["--without", name]), ("fewer", kept, [])):
        listed = f"[{', '.join(composed)}]"
        (lab / "configs" / f"{label}.yaml").write_text(
            COMPOSITION.format(name=label, modules=listed, router=f"lab/{router}")
        )
        config = EVALUATION.replace("composition.yaml", f"{label}.yaml").replace("[lab/domain]", "[]")
        (lab / "configs" / f"eval-{label}.yaml").write_text(config)
        assert main(["--lab", str(lab), "eval", f"eval-{label}", *options]) == 0
        results = json.loads((evaluation_folder(lab) / "results.json").read_text())
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


def test_having_nothing_left_to_route_to_is_said_before_any_work(
    tiny_lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = sorted(path.name for path in (tiny_lab / "runs").iterdir())
    every = [f"--without={name}" for name in ("north/code", "south/prose", "north/code-mini")]
    assert main(["--lab", str(tiny_lab), "eval", "evaluation", *every]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("error: composition tiny: all modules are opted out")
    assert sorted(path.name for path in (tiny_lab / "runs").iterdir()) == runs


def test_a_price_that_nobody_pays_runs_the_bare_trunk(lab: Path) -> None:
    """Every figure of an evaluation is still there: the curve has its point at the cost of nothing."""
    assert main(["--lab", str(lab), "eval", "evaluation", "prices=[1e9]"]) == 0
    results = json.loads((evaluation_folder(lab) / "results.json").read_text())
    [trunk] = [curve for curve in results["curves"] if curve["label"] == "trunk"]
    [oracle] = [curve for curve in results["curves"] if curve["role"] == "oracle"]
    assert [point["cost"] for point in oracle["points"]] == [0]
    assert oracle["points"][0]["bits_per_byte"] == trunk["points"][0]["bits_per_byte"]
    assert len(results["budgets"]) == 3


def test_a_domain_without_rows_is_one_line_and_leaves_no_run(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lab / "short.txt").write_text("one short line\n")
    (lab / "configs" / "data").mkdir(exist_ok=True)
    (lab / "configs" / "data" / "short.yaml").write_text(
        f"kind: data\nname: short\nsources:\n  - {{type: files, paths: ['{lab}/short.txt']}}\n"
    )
    before = set((lab / "runs").glob("evaluation-*"))
    assert main(["--lab", str(lab), "eval", "composition", "--domain", "short"]) == 2
    error = capsys.readouterr().err
    assert 'error: data "short": its 1 documents leave the validation split empty' in error
    assert len(error.strip().splitlines()) == 1
    assert set((lab / "runs").glob("evaluation-*")) == before
