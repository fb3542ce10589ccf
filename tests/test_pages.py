"""What the pages show as files of a lab works there as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moe_lab.cli import main
from tests.conftest import REPOSITORY

_FENCED = re.compile(r"^```(?:yaml|python)\n# (\S+)\n(.*?)^```", re.S | re.M)


def write_shown_files(page: str, lab: Path) -> list[str]:
    """Writes the fenced blocks of a page whose first line names a file into a lab; returns the names."""
    shown = _FENCED.findall((REPOSITORY / "docs" / page).read_text(encoding="utf-8"))
    for name, text in shown:
        (lab / name).parent.mkdir(parents=True, exist_ok=True)
        (lab / name).write_text(text, encoding="utf-8")
    return [name for name, _ in shown]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "folder", "check"),
    [
        ("strategies.md", "distill/energy", ["distill", "check", "energy", "guesses=5"]),
        ("routers.md", "routers/linear", ["router", "check", "linear"]),
    ],
)
def test_the_contribution_on_the_page_keeps_the_contract(
    page: str, folder: str, check: list[str], lab_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [name for name in write_shown_files(page, lab_folder) if name.startswith(folder)]
    assert main(["--lab", str(lab_folder), *check]) == 0, capsys.readouterr()
