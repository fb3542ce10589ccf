"""`moe-lab init`: a fresh lab."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer


def init(folder: Annotated[str, typer.Argument(metavar="DIR", help="A new or an empty folder.")]) -> None:
    """Make a fresh lab.

    It has a folder each for your modules, routers, shrinking strategies and configs.

    Example:
      moe-lab init my-lab
    """
    from moe_lab.lab import NEW_MODULE, TRAIN_A_TRUNK, init_lab

    made = init_lab(folder)
    print(
        f"made the lab {made.resolve()}\n\n"
        "next, if your team has a registry with a trunk in it:\n  export MOE_LAB_REGISTRY=FOLDER_OR_URL\n"
        f"then:\n  cd {shlex.quote(folder)}\n  {TRAIN_A_TRUNK}      # not with a team's registry\n  {NEW_MODULE}\n"
        "README.md in the lab says more"
    )
