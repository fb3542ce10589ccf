"""`moe-lab key`: the keys with which an owner signs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moe_lab.cli.app import CommandGroup
from moe_lab.errors import LabError

key = typer.Typer(cls=CommandGroup, help="Make and show the keys with which you sign what you publish.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Lowercase letters, digits, '-', '_' and '.'.")]


@key.command()
def new(
    name: Name,
    passphrase_prompt: Annotated[
        bool, typer.Option("--passphrase-prompt", help="Ask for a passphrase and encrypt the file with it.")
    ] = False,
) -> None:
    """Make a key and print its public half. MOE_LAB_KEY_PASSPHRASE, if set, encrypts the file.

    Example:
      moe-lab key new snakes --passphrase-prompt
    """
    import os

    from moe_lab.registry.keys import find_key, new_key

    passphrase = os.environ.get("MOE_LAB_KEY_PASSPHRASE")
    if passphrase_prompt:
        passphrase = typer.prompt("passphrase", hide_input=True, confirmation_prompt=True)
    made = new_key(name, passphrase)
    print(f"made {find_key(name)}\n{made.public}\nnext: moe-lab module publish CONFIG --key {name}")


@key.command("list")
def list_() -> None:
    """List your keys with their public halves.

    Example:
      moe-lab key list
    """
    from moe_lab.registry.keys import key_names, keys_folder, public_of

    names = key_names()
    if not names:
        print(f"no keys in {keys_folder()}\nnext: moe-lab key new NAME")
    for name in names:
        try:
            print(f"{name:{max(map(len, names))}}  {public_of(name)}")
        except LabError as error:
            print(f"{name:{max(map(len, names))}}  unreadable: {error}")


@key.command()
def show(name: Name) -> None:
    """Print the public half of a key, the line for a trust policy.

    Example:
      moe-lab key show snakes
    """
    from moe_lab.registry.keys import public_of

    print(public_of(name))


def ask_passphrase() -> str:
    """Asks the person at the terminal; without one there is nobody to ask."""
    if not sys.stdin.isatty():
        return ""
    return str(typer.prompt("passphrase of the key", hide_input=True, default="", show_default=False))
