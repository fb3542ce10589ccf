"""The page that takes a person from a folder of text to an evaluated model: its commands and files, as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from moe_lab.cli import main
from moe_lab.registry import Registry
from tests.conftest import REPOSITORY
from tests.jobs.test_newcomer import text_folder

pytestmark = pytest.mark.slow

PAGE = REPOSITORY / "docs" / "add-your-module.md"
BLOCK = re.compile(r"^```(yaml)?\n(.*?)^```", re.S | re.M)
# The registry of the tests' tiny lab in the place of the quickstart's.
TINY = {
    "snakes/python, writers/english, systems/cpp, tutors/exercises, snakes/python-mini": "north/code, south/prose, "
    "north/code-mini",
    "lab/quickstart-trunk": "lab/tiny",
    "lab/quickstart-gain": "lab/gain",
}
QUICK = [
    "train.steps=2",
    "train.warmup_steps=0",
    "train.batch_size=4",
    "train.seq_len=64",
    "train.learning_rate=1e-2",
    "heldout_rows=4",
]
SMALL = ["rows=4", "decision_rows=4", "seq_len=64", "batch_size=4", "resamples=20", "prices=[0.0]"]
ADDED = {
    "module new": ["--width", "24"],
    "train poems": QUICK,
    "module publish": QUICK,
    "eval with-poems-eval": SMALL,
}


def run(command: str) -> None:
    """One line of the page, with sizes for a test."""
    first, *rest = shlex.split(command)
    assert first == "moe-lab", command
    for start, added in ADDED.items():
        if " ".join(rest).startswith(start):
            rest += added
    assert main(rest) == 0, command


def test_the_page_leads_to_an_evaluated_model(
    tiny_lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text_folder(tmp_path / "texts")
    page = PAGE.read_text(encoding="utf-8")
    for here, there in TINY.items():
        page = page.replace(here, there)
    place = tmp_path
    for language, block in BLOCK.findall(page):
        if language:
            name = block.partition("\n")[0].removeprefix("# ")
            (place / name).write_text(block, encoding="utf-8")
            continue
        for line in block.splitlines():
            if line.startswith("cd "):
                place = place / line.removeprefix("cd ")
            elif line.startswith("export MOE_LAB_REGISTRY="):
                monkeypatch.setenv("MOE_LAB_REGISTRY", str(tiny_lab / "registry"))
            else:
                monkeypatch.chdir(place)
                run(line)
    report = re.search(r"report: (.*)", capsys.readouterr().out)
    assert report is not None
    text = Path(report[1]).read_text(encoding="utf-8")
    assert "without poems" in text
    published = {str(entry.ref) for entry in Registry(tiny_lab / "registry", create=False).list()}
    assert {"bards/poems@1", "bards/gain-with-poems@1"} <= published
