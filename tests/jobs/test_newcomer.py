"""A newcomer's path, as a newcomer walks it: commands and YAML, no Python."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_lab.cli import main
from tests.jobs.tiny import COMPOSITION, EVALUATION, TRUNK

pytestmark = pytest.mark.slow
Command = Callable[..., str]

ROUTER_MANIFEST = """
name: first_module
summary: Everything to the first module at full width
implementation: router.py:FirstModule
owner: newcomer
licence: Apache-2.0
"""
ROUTER_CODE = '''
"""Everything to the first module at full width."""

import jax.numpy as jnp

from moe_lab.config.spec import Spec
from moe_lab.routing.router import Router, route_candidates


class FirstModuleConfig(Spec):
    """Nothing to set."""


class FirstModule(Router):
    Config = FirstModuleConfig

    def route(self, features):
        choice_B1 = jnp.where(features.available_BE[:, :1], int(self.space.widest_E[0]), 0)
        return route_candidates(self.space, jnp.broadcast_to(choice_B1, features.segment_ids_BS.shape))
'''


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """What a successful command prints in a folder. In this process: a start of its own takes seconds each time."""

    def run(*arguments: str, cwd: Path) -> str:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        code = main(list(arguments))
        output, errors = capsys.readouterr()
        assert code == 0, errors
        return output

    return run


def text_folder(folder: Path) -> Path:
    """Real text: modules of the standard library, copied as if they were a team's own files."""
    folder.mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("argparse", "ast", "calendar", "cgi", "csv", "dis", "enum", "heapq", "inspect", "pdb", "typing"):
        if (library / f"{name}.py").exists():
            (folder / f"{name}.txt").write_text((library / f"{name}.py").read_text())
    return folder


def test_from_an_empty_folder_to_a_report(
    tmp_path: Path, moe_lab: Callable[..., subprocess.CompletedProcess[str]], told: Command
) -> None:
    texts = text_folder(tmp_path / "texts")
    assert moe_lab("init", "lab", cwd=tmp_path).returncode == 0
    lab = tmp_path / "lab"
    (lab / "configs" / "trunk.yaml").write_text(
        TRUNK.format(steps=10).replace("domain: code", "domain: python").replace("domain: prose", "domain: english")
    )
    assert "published lab/tiny@1" in told("train", "trunk", "--publish", cwd=lab)

    new = ["module", "new", "poems", "--owner", "bards", "--trunk", "lab/tiny", "--width", "16", "--licence", "CC0-1.0"]
    assert "next: moe-lab train poems" in told(*new, "--text", f"{texts}/*.txt", cwd=lab)
    manifest = (lab / "modules" / "poems" / "module.yaml").read_text()
    assert len(manifest.splitlines()) <= 30
    quick = ["train.steps=5", "train.warmup_steps=1", "train.batch_size=4", "train.seq_len=64", "heldout_rows=4"]
    assert "bits per byte held out" in told("train", "poems", *quick, cwd=lab)
    assert "bards/poems is ready" in told("module", "check", "poems", *quick, cwd=lab)
    assert "published bards/poems@1" in told("module", "publish", "poems", *quick, cwd=lab)
    assert "bards/poems@1" in told("module", "list", cwd=lab)
    assert "trunk: lab/tiny@1" in told("module", "lineage", "bards/poems", cwd=lab)
    assert "0 problems" in told("module", "verify", cwd=lab)

    fixed = "{type: fixed, candidate: 'bards/poems:16'}"
    (lab / "configs" / "mine.yaml").write_text(COMPOSITION.format(name="mine", modules="[bards/poems]", router=fixed))
    assert "lockfile: " in told("compose", "mine", cwd=lab)
    small = ["rows=4", "decision_rows=4", "seq_len=64", "batch_size=4", "resamples=20"]
    done = moe_lab("eval", "mine", "--domain", "english", *small, cwd=lab)
    assert done.returncode == 0, done.stderr
    output = done.stdout
    report = re.search(r"report: (.*)", output)
    assert report is not None
    assert Path(report[1]).read_text().startswith("<!doctype html>")


def test_a_router_is_added_by_dropping_a_folder(tiny_lab: Path, told: Command) -> None:
    folder = tiny_lab / "routers" / "first_module"
    folder.mkdir()
    (folder / "router.yaml").write_text(ROUTER_MANIFEST.lstrip())
    (folder / "router.py").write_text(ROUTER_CODE.lstrip())
    (tiny_lab / "configs" / "first.yaml").write_text(
        COMPOSITION.format(name="first", modules="[north/code, south/prose]", router="{type: first_module}")
    )
    (tiny_lab / "configs" / "first-eval.yaml").write_text(
        EVALUATION.replace("composition.yaml", "first.yaml").replace("[lab/domain]", "[]")
    )
    output = told("eval", "first-eval", cwd=tiny_lab)
    assert re.search(r"^router first_module ", output, re.MULTILINE)


def test_a_fresh_lab_says_what_a_module_needs_first(
    lab_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = text_folder(tmp_path / "texts")
    new = ["--lab", str(lab_folder), "module", "new", "poems", "--owner", "bards", "--licence", "CC0-1.0"]
    assert main([*new, "--trunk", "lab/quickstart-trunk", "--text", f"{texts}/*.txt"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --trunk lab/quickstart-trunk: a module is trained beside a published trunk")
    assert "MOE_LAB_REGISTRY" in told
    assert "moe-lab train quickstart/trunk --publish" in told
    assert "moe-lab train quickstart/trunk --publish" in (lab_folder / "README.md").read_text()


def test_a_pattern_that_matches_nothing_is_said_at_once(tiny_lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = ["--lab", str(tiny_lab), "module", "new", "poems", "--owner", "bards", "--licence", "CC0-1.0"]
    assert main([*new, "--trunk", "lab/tiny", "--width", "16", "--text", "nowhere/*.txt"]) == 2
    assert "--text nowhere/*.txt: no file matches" in capsys.readouterr().err
    assert not (tiny_lab / "modules" / "poems").exists()


def test_an_unknown_domain_lists_those_there_are(tiny_lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--lab", str(tiny_lab), "eval", "composition", "--domain", "klingon"]) == 2
    told = capsys.readouterr().err
    assert 'no domain "klingon"' in told
    assert "code" in told.partition("Available:")[2]
    assert "prose" in told.partition("Available:")[2]


def test_the_next_command_can_be_pasted_into_a_shell(
    tiny_lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_lab / "configs" / "a 'b' $HOME; c.yaml"
    config.write_text((tiny_lab / "configs" / "child.yaml").read_text())
    overrides = ["strategy={type: nested_prune}", "summary=a * of `all`"]
    assert main(["--lab", str(tiny_lab), "train", str(config), *overrides, "train.steps=2"]) == 0
    printed = capsys.readouterr().out.partition("next: ")[2].strip()
    stub = tmp_path / "bin" / "moe-lab"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    stub.chmod(0o755)
    path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", printed], env={"PATH": path}, capture_output=True, check=True)
    words = done.stdout.decode().split("\0")[:-1]
    assert words == ["--lab", str(tiny_lab), "module", "publish", str(config), *overrides, "train.steps=2"]
