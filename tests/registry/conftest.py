import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_lab.registry import Registry

Publishers = Callable[..., list[dict[str, Any] | None]]


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory where there is one: fsync is free there, and some tests publish very often."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def root(quick: Path) -> Path:
    return quick / "registry"


@pytest.fixture
def registry(root: Path) -> Registry:
    return Registry(root)


@pytest.fixture(scope="module")
def publishers() -> Iterator[Publishers]:
    """Runs jobs as processes, all at once; see publishers.py."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("publishers.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    commands, answers = process.stdin, process.stdout
    assert commands is not None
    assert answers is not None

    def run(registry: Path, *jobs: dict[str, Any]) -> list[dict[str, Any] | None]:
        commands.write(json.dumps({"registry": str(registry), "jobs": jobs}) + "\n")
        commands.flush()
        answer: list[dict[str, Any] | None] = json.loads(answers.readline())
        return answer

    with process:
        yield run
        commands.close()
