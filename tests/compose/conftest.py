"""The tiny registry, made once for all tests that only read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.compose.published import Published, open_published, publish_all


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish_all(tmp_path_factory.mktemp("published") / "lab")


@pytest.fixture
def own(published: Published, tmp_path: Path) -> Published:
    """A copy to publish into."""
    return open_published(Path(shutil.copytree(published.lab.root, tmp_path / "lab")))
