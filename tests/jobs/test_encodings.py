"""Every command prints on every terminal, and what it writes is UTF-8 all the same."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from moe_lab.cli import main

SIGNS = "naïve 中文 – … µ 🙂"


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, code: int, *arguments: str) -> str:
    """What a command writes to both streams of a terminal with this encoding."""
    streams = io.BytesIO(), io.BytesIO()
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding, write_through=True))
    try:
        done = main(list(arguments))
        told = "".join(stream.getvalue().decode(encoding) for stream in streams)
    finally:
        monkeypatch.undo()
    assert done == code, told
    return told


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_every_command_prints_in_every_encoding(tiny_lab: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    lab = ["--lab", str(tiny_lab)]
    assert main([*lab, "module", "retire", "lab/topk@1", "--reason", SIGNS]) == 0
    for arguments in (
        ["module", "list", "--all"],
        ["module", "show", "north/code"],
        ["module", "verify"],
        ["module", "diff", "north/code", "south/prose"],
        ["compose", "composition"],
        ["eval", "evaluation"],
        ["run", "tiny"],
        ["runs"],
        ["router", "list"],
    ):
        assert printed(monkeypatch, encoding, 0, *lab, *arguments)
    tree = printed(monkeypatch, encoding, 0, *lab, "module", "lineage", "north/code-mini")
    assert "`-- " in tree
    listed = printed(monkeypatch, encoding, 0, *lab, "module", "list", "--all")
    assert r"\u4e2d\u6587 - ... " in listed
    assert r"\U0001f642" in listed
    report = next((tiny_lab / "runs").glob("evaluation-*/report.html"))
    assert "·" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_mistakes_and_broken_names_print_too(lab_folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    for name in (SIGNS, "lone \udcff surrogate"):
        assert "error: no config" in printed(monkeypatch, encoding, 2, "--lab", str(lab_folder), "train", name)
        assert "error: " in printed(monkeypatch, encoding, 2, "--lab", name, "runs")
    for command in ("init", "train", "module", "eval"):
        printed(monkeypatch, encoding, 0, command, "--help")
