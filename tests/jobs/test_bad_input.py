"""Mistakes: one line that names value, rule and next step, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_lab.cli import main
from moe_lab.registry import Registry
from tests.jobs.tiny import COMPOSITION, MODULE

pytestmark = pytest.mark.slow
Capture = pytest.CaptureFixture[str]


def refused(lab: Path, capsys: Capture, *arguments: str) -> str:
    """The one line that a refused command prints; the registry must not have changed."""
    before = sorted(path for path in (lab / "registry").rglob("*") if path.is_file())
    capsys.readouterr()
    assert main(["--lab", str(lab), *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sorted(path for path in (lab / "registry").rglob("*") if path.is_file()) == before
    return errors[0]


def module_yaml(lab: Path, name: str, text: str) -> None:
    folder = lab / "modules" / name
    folder.mkdir(exist_ok=True)
    (folder / "module.yaml").write_text(text)


def test_an_unknown_key(tiny_lab: Path, capsys: Capture) -> None:
    error = refused(tiny_lab, capsys, "train", "code", "train.stepz=5")
    assert "train.stepz: unknown key" in error
    assert 'Did you mean "steps"?' in error


def test_a_wrong_type(tiny_lab: Path, capsys: Capture) -> None:
    assert "train.steps" in refused(tiny_lab, capsys, "train", "code", "train.steps=many")


def test_a_missing_config(tiny_lab: Path, capsys: Capture) -> None:
    assert 'no config "cod". Did you mean "code"?' in refused(tiny_lab, capsys, "train", "cod")


def test_a_missing_text_file(tiny_lab: Path, capsys: Capture) -> None:
    data = "{name: gone, sources: [{type: files, paths: ['nowhere/*.txt']}]}"
    text = MODULE.format(owner="north", name="gone", width=8, ladder="[8]", data=data)
    module_yaml(tiny_lab, "gone", text)
    assert "nowhere/*.txt" in refused(tiny_lab, capsys, "train", "gone")


def test_a_module_whose_text_is_its_own_name(tiny_lab: Path, capsys: Capture) -> None:
    module_yaml(tiny_lab, "round", MODULE.format(owner="north", name="round", width=8, ladder="[8]", data="round"))
    error = refused(tiny_lab, capsys, "train", "round")
    assert 'its text is "round", which names this module again; write out what text that is' in error


def test_empty_text(tiny_lab: Path, capsys: Capture) -> None:
    data = "{name: empty, sources: [{type: files, paths: ['empty.txt']}]}"
    text = MODULE.format(owner="north", name="empty", width=8, ladder="[8]", data=data)
    module_yaml(tiny_lab, "empty", text)
    (tiny_lab / "modules" / "empty" / "empty.txt").write_text("")
    assert 'data "empty", source 1 (files): holds no text' in refused(tiny_lab, capsys, "train", "empty")


def test_a_ladder_that_does_not_fit_the_trunk(tiny_lab: Path, capsys: Capture) -> None:
    error = refused(tiny_lab, capsys, "train", "code", "ladder=[7, 24]")
    assert "ladder width 7 must be a multiple of the trunk's block, 8" in error


def test_a_module_of_another_trunk(tiny_lab: Path, capsys: Capture) -> None:
    assert main(["--lab", str(tiny_lab), "train", "trunk", "train.seed=1", "--publish"]) == 0
    error = refused(tiny_lab, capsys, "compose", "composition")
    assert "north/code@1 does not fit this trunk: its trunk is sha256-" in error
    assert "compose it with the trunk it was made for" in error


def test_a_module_listed_twice(tiny_lab: Path, capsys: Capture) -> None:
    (tiny_lab / "configs" / "twice.yaml").write_text(
        COMPOSITION.format(name="twice", modules="[north/code, north/code@1]", router="lab/gain")
    )
    assert "module north/code is listed twice" in refused(tiny_lab, capsys, "compose", "twice")


def test_one_name_in_two_places(tiny_lab: Path, capsys: Capture) -> None:
    shutil.copytree(Path(__file__).parents[2] / "routers" / "fixed", tiny_lab / "routers" / "fixed")
    (tiny_lab / "configs" / "two.yaml").write_text(
        COMPOSITION.format(name="two", modules="[north/code]", router="{type: fixed}")
    )
    error = refused(tiny_lab, capsys, "compose", "two")
    assert "fixed" in error
    assert str(tiny_lab / "routers" / "fixed") in error


def test_nan_weights_are_not_admitted(tiny_lab: Path, capsys: Capture) -> None:
    assert main(["--lab", str(tiny_lab), "train", "code", "train.steps=7"]) == 0
    run = max((tiny_lab / "runs").glob("module-north-code-*"), key=lambda path: path.stat().st_mtime_ns)
    staging = Registry(run / "candidate")
    manifest = staging.manifest("north/code")
    tensors = {name: np.array(value) for name, value in staging.tensors(manifest).items()}
    tensors["layers.1.up"][0, 0, 0] = np.nan
    fields = {key: manifest[key] for key in manifest if key not in ("format", "tensors")}
    broken = staging.publish("north", "code", None, fields, tensors, set(tensors)).digest
    result = run / "result.json"
    result.write_text(result.read_text().replace(manifest.digest, broken))
    for command in ("check", "publish"):
        error = refused(tiny_lab, capsys, "module", command, "code", "train.steps=7")
        assert "north/code is not admitted: finite values: layers.1.up has 1 values that are NaN" in error


def test_a_claim_that_is_not_kept(tiny_lab: Path, capsys: Capture) -> None:
    run = next((tiny_lab / "runs").glob("module-south-prose-*"))
    staging = Registry(run / "candidate")
    manifest = staging.manifest("south/prose")
    fields = {key: manifest[key] for key in manifest if key not in ("format", "tensors")}
    boasting = [{**claim, "value": "1.000000"} for claim in manifest["claims"]]
    tensors = staging.tensors(manifest)
    boast = staging.publish("south", "prose", None, {**fields, "claims": boasting}, tensors, set(tensors)).digest
    result = run / "result.json"
    result.write_text(result.read_text().replace(manifest.digest, boast))
    error = refused(tiny_lab, capsys, "module", "check", "prose")
    assert "claims 1.0000 bits per byte, measured" in error


def test_an_unreadable_registry(tiny_lab: Path, capsys: Capture) -> None:
    shutil.rmtree(tiny_lab / "registry")
    (tiny_lab / "registry").write_text("not a folder")
    for command in (["module", "list"], ["train", "code"]):
        assert str(tiny_lab / "registry") in refused(tiny_lab, capsys, *command)


def test_a_damaged_blob_is_named(tiny_lab: Path, capsys: Capture) -> None:
    registry = Registry(tiny_lab / "registry")
    blob = registry.manifest("north/code")["tensors"]["layers.1.gate"]["chunks"][0]
    path = tiny_lab / "registry" / "blobs" / blob
    path.chmod(0o644)
    damaged = bytearray(path.read_bytes())
    damaged[3] ^= 1
    path.write_bytes(damaged)
    error = refused(tiny_lab, capsys, "compose", "composition")
    assert "north/code" in error
    assert "layers.1.gate" in error


def test_an_unknown_command(tiny_lab: Path, capsys: Capture) -> None:
    assert 'unknown command "trian". Did you mean "train"?' in refused(tiny_lab, capsys, "trian")


def test_publishing_what_is_not_trained(tiny_lab: Path, capsys: Capture) -> None:
    error = refused(tiny_lab, capsys, "module", "publish", "code", "train.steps=99")
    assert "is not trained for its present config and text" in error


def test_a_full_disk_stops_with_a_line_and_publishes_nothing(
    tiny_lab: Path, moe_lab: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    small = tiny_lab / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs permission to mount")
    try:
        process = moe_lab("train", "trunk", "train.steps=11", cwd=small_lab(tiny_lab, small))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert process.returncode == 2
    assert "disk full" in process.stderr
    assert "Traceback" not in process.stderr


def small_lab(lab: Path, small: Path) -> Path:
    """A lab whose runs go to the small file system, which has no room for the text of the environment as well."""
    (lab / "runs" / "text").rename(lab / "text")
    shutil.rmtree(lab / "runs")
    (small / "runs").mkdir()
    (small / "runs" / "text").symlink_to(lab / "text")
    (lab / "runs").symlink_to(small / "runs")
    return lab
