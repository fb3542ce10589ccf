"""Paths that no system takes: one line and exit code 2, from whichever option or file they come."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from moe_lab.cli import main
from moe_lab.cli.commands import COMMANDS
from moe_lab.config import load_config
from moe_lab.data.files import find_files
from moe_lab.data.spec import DataSpec, FilesSource
from moe_lab.errors import LabError
from moe_lab.lab import init_lab

LONG = "a" * 5000


def read(config: str) -> None:
    """Find the text of a domain."""
    spec = load_config(config, kind="data")
    assert isinstance(spec, DataSpec)
    [source] = spec.sources
    assert isinstance(source, FilesSource)
    if not find_files(Path.cwd() / "configs", source.paths):
        raise LabError("no files")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = init_lab(tmp_path / "lab")
    (made / "loop").symlink_to("loop")
    (made / "registry").mkdir()
    monkeypatch.chdir(made)
    return made


def told(capsys: pytest.CaptureFixture[str], *arguments: str, table: Mapping[str, str] = COMMANDS) -> str:
    capsys.readouterr()
    assert main(list(arguments), table) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", LONG],
        ["train", "b" * 300],
        ["compose", LONG],
        ["eval", LONG],
        ["run", LONG],
        ["--lab", LONG, "runs"],
        ["init", LONG],
        ["route-report", LONG],
        ["module", "import", LONG, "--as", "a/b"],
        ["module", "mirror", LONG],
        ["schema", "--out", LONG],
    ],
    ids=lambda arguments: " ".join(arguments)[:24],
)
def test_a_name_that_is_too_long(lab: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert "name too long" in told(capsys, *arguments).lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lab", "loop", "module", "list"],
        ["--lab", "loop/in", "module", "list"],
        ["train", "loop"],
        ["train", "loop/x.yaml"],
        ["init", "loop"],
        ["init", "loop/lab"],
        ["route-report", "loop/x"],
        ["module", "import", "loop", "--as", "a/b"],
        ["schema", "--out", "loop"],
    ],
    ids=" ".join,
)
def test_links_in_a_circle(lab: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    told(capsys, *arguments)


@pytest.mark.parametrize("variable", ["MOE_LAB_REGISTRY", "MOE_LAB_HOME", "MOE_LAB_TRUST"])
@pytest.mark.parametrize("value", [LONG, "loop", "loop/x", "~nobody-has-this-name/x"])
def test_variables_that_name_no_place(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    told(capsys, "module", "list")


@pytest.mark.parametrize("path", [LONG, f"{LONG}/*.txt", "../loop", "../loop/*.txt", "~nobody/x", r"a\0b"])
def test_paths_in_a_config(lab: Path, capsys: pytest.CaptureFixture[str], path: str) -> None:
    (lab / "data.yaml").write_text(f'name: poems\nsources: [{{type: files, paths: ["{path}"]}}]\n')
    told(capsys, "read", "data.yaml", table={"read": f"{__name__}:read"})


def test_a_folder_that_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone, here = tmp_path / "gone", Path.cwd()
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    try:
        assert "current folder is not there any more" in told(capsys, "runs")
    finally:
        os.chdir(here)
