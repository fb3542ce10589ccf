from collections.abc import Callable
from pathlib import Path

import pytest


def manifest(name: str, implementation: str = "router.py:Router") -> str:
    about = "summary: one line\nowner: a team\nlicence: Apache-2.0\n"
    return f"name: {name}\nimplementation: {implementation}\n{about}"


@pytest.fixture
def add_router() -> Callable[..., Path]:
    """Puts a router folder into a lab: its manifest and one Python file."""

    def add(lab: Path, name: str, code: str = "class Router:\n    pass\n") -> Path:
        folder = lab / "routers" / name
        folder.mkdir(parents=True)
        (folder / "router.yaml").write_text(manifest(name))
        (folder / "router.py").write_text(code)
        return folder

    return add
