"""A training on text of the environment is found done after something was installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lab.cli import main
from tests.data.distributions import install_distribution
from tests.jobs.tiny import write_tiny_lab


@pytest.mark.slow
def test_installing_a_package_after_training_trains_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = write_tiny_lab(tmp_path / "lab", steps=2)
    prose = lab / "configs" / "data" / "prose.yaml"
    prose.write_text(prose.read_text().replace("type: pydoc, max_bytes: 60000", "type: readmes"))
    train = ["--lab", str(lab), "train", "trunk"]
    assert main(train) == 0
    said = capsys.readouterr()
    assert "text of readmes kept in " in said.out + said.err
    [run] = lab.glob("runs/trunk-*")
    install_distribution(tmp_path / "later", "later-thing", monkeypatch)
    assert main(train) == 0
    assert list(lab.glob("runs/trunk-*")) == [run]
    said = capsys.readouterr()
    assert "kept in" not in said.out + said.err
