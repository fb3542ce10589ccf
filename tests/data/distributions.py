"""Installed distributions made up for tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def install_distribution(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a distribution with a description on the path, as installing any package does."""
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n\nThe description of {name}.\n")
    monkeypatch.syspath_prepend(str(folder))
