"""Another artifact under a name that a router learned from: refused, or accepted in so many words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_lab.cli import main
from moe_lab.registry import Registry
from tests.jobs.test_study import evaluation_folder

pytestmark = pytest.mark.slow
SMALL = ["rows=4", "decision_rows=4", "seq_len=64", "batch_size=4", "resamples=20", "prices=[0.0]"]


def test_a_replaced_module_is_refused_everywhere_until_accepted(
    tiny_lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab, registry = ["--lab", str(tiny_lab)], Registry(tiny_lab / "registry")
    router = registry.manifest("lab/gain@1")
    old = registry.resolve("north/code@1").digest
    assert router["interface"]["module_digests"]["north/code@1"] == old
    assert main([*lab, "train", "code", "train.seed=7", "--publish"]) == 0
    new = registry.resolve("north/code@2").digest
    capsys.readouterr()
    composed = ["compose", "composition"]
    for command in (
        composed,
        ["eval", "evaluation"],
        ["outcomes", "composition"],
        ["speed", "composition"],
    ):
        assert main([*lab, *command]) == 2
        told = capsys.readouterr().err
        assert f"router lab/gain@1 learned from north/code@1 ({old[:19]}), but north/code@2 ({new[:19]})" in told
        assert "--accept-replaced" in told

    assert main([*lab, *composed, "--accept-replaced"]) == 0
    assert f"north/code@2  {new[:19]}  in place of north/code@1 {old[:19]}" in capsys.readouterr().out
    lockfile = tiny_lab / "runs" / "compositions" / "tiny.lock.json"
    assert json.loads(lockfile.read_text())["replaced"] == {"north/code": {"ref": "north/code@1", "digest": old}}
    assert main([*lab, "eval", str(lockfile), "--domain", "code", *SMALL]) == 0
    folder = evaluation_folder(tiny_lab)
    modules = json.loads((folder / "results.json").read_text())["modules"]
    assert [module.get("in_place_of") for module in modules] == [{"ref": "north/code@1", "digest": old}, None, None]
    header = (folder / "report.html").read_text().partition("</header>")[0]
    assert f"learned from north/code@1 ({old[:19]}), but north/code@2 ({new[:19]}) is composed in its place" in header
