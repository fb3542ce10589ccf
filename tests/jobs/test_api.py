"""The public face: the page's ten lines run as they stand, on a lab that the commands made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moe_lab.api import load_composition, score_text
from moe_lab.errors import LabError
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


def test_the_page_s_lines_run_and_agree_with_the_call(
    finished_study: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs" / "python.md").read_text(), re.S | re.M)
    assert len(code.splitlines()) <= 10
    code = code.replace("quickstart/composition", "composition").replace("snakes/python", "north/code")
    monkeypatch.chdir(finished_study)
    exec(compile(code, "docs/python.md", "exec"), {})
    printed = capsys.readouterr().out
    scored = score_text(
        load_composition("composition", lab=finished_study), "def area(radius):\n    return 3.14159 * radius**2\n"
    )
    assert printed.startswith(f"{scored.bits_per_byte:.3f} bits per byte, ")


def test_a_miss_names_the_compositions_there_are(finished_study: Path) -> None:
    with pytest.raises(LabError, match='no config "compositon".* Did you mean "composition"'):
        load_composition("compositon", lab=finished_study)
