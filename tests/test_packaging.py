"""The wheel as a user gets it: built, installed into an empty folder, and run from another one."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moe_lab import __version__
from moe_lab.lab import FOLDERS

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | (env or {})
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive as package indexes do."""
    out = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", str(out), str(REPOSITORY), cwd=out)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip = ("-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(*pip, "--target", str(folder), str(wheel), cwd=folder)
    return folder


def test_nothing_but_the_package_lands_in_site_packages(site: Path) -> None:
    assert {path.name for path in site.iterdir()} == {"moe_lab", f"moe_lab-{__version__}.dist-info", "bin"}
    assert [path.name for path in (site / "bin").iterdir()] == ["moe-lab"]


def test_the_wheel_carries_the_whole_built_in_lab(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS:
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"moe_lab/_lab/{path.relative_to(REPOSITORY).as_posix()}" in names
    assert "moe_lab/py.typed" in names
    assert f"moe_lab-{__version__}.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("moe_lab/tests")]


def test_the_built_in_lab_is_found_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    code = (
        "from moe_lab.lab import find_lab, CATEGORIES\n"
        "lab = find_lab()\n"
        "print(lab.root, lab.builtin, sep='\\n')\n"
        "print(*[c.origin for category in CATEGORIES for c in lab.contributions(category).values()])\n"
    )
    root, builtin, origins = run("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(site)}).split("\n")[:3]
    assert Path(root) == tmp_path
    assert Path(builtin) == site / "moe_lab" / "_lab"
    assert set(origins.split()) <= {"built-in"}


def test_the_installed_command_makes_a_lab(site: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(site)}
    out = run(str(site / "bin" / "moe-lab"), "init", "mine", cwd=tmp_path, env=environment)
    assert str(tmp_path / "mine") in out
    for folder in FOLDERS:
        assert (tmp_path / "mine" / folder / "README.md").is_file()
