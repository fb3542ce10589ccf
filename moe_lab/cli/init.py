"""`moe-lab init`: a fresh lab."""

from __future__ import annotations

from typing import Annotated

import typer


def init(folder: Annotated[str, typer.Argument(metavar="DIR", help="A new or an empty folder.")]) -> None:
    """Make a fresh lab.

    It has a folder each for your modules, routers, shrinking strategies and configs.

    Example:
      moe-lab init my-lab
    """
    from moe_lab.lab import init_lab

    made = init_lab(folder)
    print(f"made the lab {made.resolve()}\n\nnext:\n  cd {folder}\n  moe-lab --help")
