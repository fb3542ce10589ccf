"""The lab as a folder on disk: recognised, created, and the one that came with the framework."""

from __future__ import annotations

import shutil
from pathlib import Path

import moe_lab
from moe_lab.errors import Refused

FOLDERS = ("modules", "routers", "distill", "configs")
TRAIN_A_TRUNK = "moe-lab train quickstart/trunk --publish"
NEW_MODULE = (
    'moe-lab module new poems --owner bards --trunk lab/quickstart-trunk --text "~/poems/*.txt" --licence CC0-1.0'
)
_README = f"""# A lab

Modules are trained beside a published trunk. A team shares one registry, and with it the trunk:

    export MOE_LAB_REGISTRY=FOLDER_OR_URL

Alone, train the quickstart's trunk into this lab's own registry (a minute or two):

    {TRAIN_A_TRUNK}

Then make a module of your own text, train it, publish it:

    {NEW_MODULE}
    moe-lab train poems
    moe-lab module publish poems

`modules/`, `routers/`, `distill/` and `configs/` say in their README what goes in. What is trained lies in `runs/`,
what is published in `registry/`; git is told to leave both out.
"""


def is_lab(path: Path) -> bool:
    """Tells whether a folder has the four folders of a lab."""
    return not missing_folders(path)


def missing_folders(path: Path) -> list[str]:
    """Returns those of the four folders that `path` does not have."""
    return [folder for folder in FOLDERS if not (path / folder).is_dir()]


def builtin_lab() -> Path:
    """Returns the lab that came with the framework: inside the wheel, or the checkout around the package."""
    package = Path(moe_lab.__file__).resolve().parent
    shipped = package / "_lab"
    return shipped if shipped.is_dir() else package.parent


def init_lab(path: str | Path) -> Path:
    """Makes a fresh lab and returns its folder: the four folders, each with a page saying what goes in.

    Raises:
        Refused: there is a file in the way, or the folder is not empty.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise Refused(f"{path}: there is a file of that name. Give the name of a new folder.")
    if path.is_dir() and any(path.iterdir()):
        raise Refused(f"{path}: the folder is not empty. Give a new or an empty folder.")
    for folder in FOLDERS:
        (path / folder).mkdir(parents=True)
        shutil.copyfile(builtin_lab() / folder / "README.md", path / folder / "README.md")
    (path / ".gitignore").write_text("/runs/\n/registry/\n", encoding="utf-8")
    (path / "README.md").write_text(_README, encoding="utf-8")
    return path
