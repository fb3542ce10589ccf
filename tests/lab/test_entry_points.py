"""Contributions of installed packages: a real package folder with its metadata, in a process of its own."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_lab.lab import init_lab
from tests.lab.conftest import manifest

Python = Callable[..., subprocess.CompletedProcess[str]]
# Prints what a lab sees and which of the package's modules were imported for it.
LIST = """
import json, sys
from moe_lab.errors import LabError
from moe_lab.lab import Lab
lab = Lab(*map(__import__("pathlib").Path, sys.argv[1:3]))
try:
    found = lab.contributions("routers")
except LabError as error:
    print(json.dumps({"error": str(error)}))
else:
    listed = {name: [str(c.path), c.origin] for name, c in found.items()}
    imported = [name for name in sys.modules if name.split(".")[0] == "acme"]
    answers = {name: lab.load(c).answer for name, c in found.items()} if "load" in sys.argv else None
    print(json.dumps({"listed": listed, "imported": imported, "answers": answers}))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with `acme-routers`, whose import would fail."""
    folder = tmp_path / "site" / "acme" / "routers" / "fast"
    folder.mkdir(parents=True)
    (tmp_path / "site" / "acme" / "__init__.py").write_text("raise RuntimeError('acme was imported')\n")
    (folder / "router.yaml").write_text(manifest("fast"))
    (folder / "router.py").write_text("from .numbers import ANSWER\nclass Router:\n    answer = ANSWER\n")
    (folder / "numbers.py").write_text("ANSWER = 7\n")
    return tmp_path / "site"


def install(site: Path, entry_points: str, name: str = "acme-routers") -> None:
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[moe_lab.routers]\n{entry_points}\n")


@pytest.fixture
def see(tmp_path: Path, site: Path, python: Python) -> Callable[..., dict]:
    labs = [str(init_lab(tmp_path / "lab")), str(init_lab(tmp_path / "builtin"))]

    def run(*arguments: str) -> dict:
        done = python("-c", LIST, *labs, *arguments, path=site)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_an_installed_router_is_listed_without_importing_its_package(site: Path, see: Callable[..., dict]) -> None:
    install(site, "fast = acme.routers.fast")
    seen = see()
    assert seen["listed"] == {"fast": [str(site / "acme" / "routers" / "fast"), "package acme-routers"]}
    assert seen["imported"] == []


def test_an_installed_router_loads_as_one_of_the_lab_does(site: Path, see: Callable[..., dict]) -> None:
    install(site, "fast = acme.routers.fast")
    assert see("load")["answers"] == {"fast": 7}


@pytest.mark.parametrize(
    ("entry_points", "reason"),
    [
        ("fast = acme.routers.slow", "no folder of that package holds router.yaml"),
        ("fast = nowhere", "no folder of that package holds router.yaml"),
        ("Fast-One = acme.routers.fast", "the name must be a lowercase identifier"),
        ("quick = acme.routers.fast", 'name: expected "quick" as the entry point says, got "fast"'),
    ],
)
def test_a_broken_entry_point_names_the_package(
    site: Path, see: Callable[..., dict], entry_points: str, reason: str
) -> None:
    install(site, entry_points)
    error = see()["error"]
    assert reason in error
    assert "acme" in error


def test_a_name_that_a_package_and_the_lab_share_shows_both(
    tmp_path: Path, site: Path, see: Callable[..., dict], add_router: Callable[..., Path]
) -> None:
    install(site, "fast = acme.routers.fast")
    mine = add_router(tmp_path / "lab", "fast")
    assert see()["error"] == (
        f'router "fast" is in two places: {mine} (lab) and {site / "acme" / "routers" / "fast"} '
        "(package acme-routers). Rename or remove one."
    )


def test_two_packages_that_share_a_name_show_both(site: Path, see: Callable[..., dict]) -> None:
    install(site, "fast = acme.routers.fast")
    other = site / "rival" / "fast"
    other.mkdir(parents=True)
    (other / "router.yaml").write_text(manifest("fast"))
    install(site, "fast = rival.fast", "rival-routers")
    error = see()["error"]
    assert "(package acme-routers)" in error
    assert "(package rival-routers)" in error
