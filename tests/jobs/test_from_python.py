"""The public face: the page's ten lines run as they stand, on a lab that the commands made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import moe_lab
from moe_lab import LabError, load_composition, score_text
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", ["docs/python.md", "README.md"])
def test_the_page_s_lines_run_and_agree_with_the_call(
    page: str, finished_study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / page).read_text(), re.S | re.M)
    assert len(code.splitlines()) <= 10
    code = code.replace("quickstart/composition", "composition").replace("snakes/python", "north/code")
    monkeypatch.chdir(finished_study)
    exec(compile(code, page, "exec"), {})
    printed = capsys.readouterr().out
    model = load_composition("composition", lab=finished_study)
    scored = score_text(model, "def area(radius):\n    return 3.14159 * radius**2\n")
    assert float(printed.split()[0]) == pytest.approx(scored.bits_per_byte, abs=5e-4)


def test_the_page_says_what_every_public_name_is_for() -> None:
    page = (REPOSITORY / "docs" / "python.md").read_text()
    table = page[page.index("## The public names") :]
    assert set(re.findall(r"`(\w+)`", table)) >= {*moe_lab.__all__} - {"__version__"}


def test_a_miss_names_the_compositions_there_are(finished_study: Path) -> None:
    with pytest.raises(LabError, match='no config "compositon".* Did you mean "composition"'):
        load_composition("compositon", lab=finished_study)
