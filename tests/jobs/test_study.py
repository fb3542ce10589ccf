"""The main job on a tiny lab: everything is made once, published, evaluated, and skipped the second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_lab.cli import main
from moe_lab.evaluation.results import load_results
from moe_lab.registry import Registry
from moe_lab.training import read_ledger

pytestmark = pytest.mark.slow


def evaluation_folder(lab: Path) -> Path:
    """Where the newest evaluation lies."""
    return max((lab / "runs").glob("evaluation-*"), key=lambda path: path.stat().st_mtime_ns)


def test_everything_is_published_and_whole(finished_study: Path) -> None:
    registry = Registry(finished_study / "registry", create=False)
    published = {str(entry.ref): entry.kind for entry in registry.list()}
    assert published == {
        "lab/tiny@1": "trunk",
        "north/code@1": "module",
        "south/prose@1": "module",
        "north/code-mini@1": "module",
        "lab/gain@1": "router",
        "lab/domain@1": "router",
        "lab/topk@1": "router",
    }
    assert registry.verify().ok


def test_a_second_run_does_nothing_new(finished_study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [(record.run, record.updated) for record in read_ledger(finished_study / "runs")]
    assert main(["--lab", str(finished_study), "run", "tiny"]) == 0
    assert [(record.run, record.updated) for record in read_ledger(finished_study / "runs")] == before
    assert capsys.readouterr().out.count("already done") == 8  # all stages but composing, which is instant


def test_results_hold_the_matrix_and_every_baseline(finished_study: Path) -> None:
    results = load_results(evaluation_folder(finished_study) / "results.json")
    systems = {(cell.system, cell.module, cell.width) for cell in results.matrix}
    assert {("trunk", None, None), ("composed", None, None), ("left_out", "north/code", None)} <= systems
    assert {("alone", "north/code", 8), ("alone", "north/code", 24), ("alone", "south/prose", 13)} <= systems
    assert len(results.matrix) == len(systems) * len(results.domains)
    roles = {curve.role for curve in results.curves}
    assert roles == {"learned", "told", "zero_router", "group_table", "uniform_width", "oracle", "fixed", "random"}
    for curve in results.curves:
        for point in curve.points:
            assert point.bits_per_byte.low <= point.bits_per_byte.mean <= point.bits_per_byte.high
    # Each part's licence is that of its manifest.
    registry = Registry(finished_study / "registry", create=False)
    for part in (results.trunk, *results.modules, *(router for router in results.routers if router.digest)):
        assert part.licence == registry.manifest(str(part.digest))["licence"], part
    report = (evaluation_folder(finished_study) / "report.html").read_text()
    assert "north/code-mini" in report
    assert "http://" not in report.replace("http://www.w3.org", "")


def test_the_child_names_its_teacher_and_keeps_both_scores(finished_study: Path) -> None:
    registry = Registry(finished_study / "registry", create=False)
    manifest = registry.manifest("north/code-mini")
    relations = {parent["relation"]: parent for parent in manifest["lineage"]["parents"]}
    assert relations["teacher"]["digest"] == registry.resolve("north/code").digest
    assert relations["trunk"]["digest"] == registry.resolve("lab/tiny").digest
    before = manifest["lineage"]["method"]["before_distillation"]
    assert [entry["width"] for entry in before] == [entry["width"] for entry in manifest["claims"]]


def test_changing_a_config_makes_a_new_version_and_leaves_the_old_one(tiny_lab: Path) -> None:
    registry = Registry(tiny_lab / "registry", create=False)
    first = registry.resolve("south/prose@1").digest
    assert main(["--lab", str(tiny_lab), "train", "prose", "train.steps=9", "--publish"]) == 0
    assert str(registry.resolve("south/prose").ref) == "south/prose@2"
    assert registry.resolve("south/prose@1").digest == first


def test_the_lockfile_rebuilds_the_same_figures(tiny_lab: Path) -> None:
    lock = tiny_lab / "runs" / "compositions" / "tiny.lock.json"
    config = (tiny_lab / "configs" / "evaluation.yaml").read_text().replace("composition.yaml", str(lock))
    (tiny_lab / "configs" / "again.yaml").write_text(config.replace("name: tiny", "name: again"))
    first = json.loads((evaluation_folder(tiny_lab) / "results.json").read_text())
    assert main(["--lab", str(tiny_lab), "eval", str(tiny_lab / "configs" / "again.yaml")]) == 0
    again = json.loads((evaluation_folder(tiny_lab) / "results.json").read_text())
    assert again["name"] == "again"
    assert again["matrix"] == first["matrix"]
    assert again["curves"] == first["curves"]
