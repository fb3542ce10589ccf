"""The commands of `moe-lab module` that look after a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moe_lab.cli.app import current_lab

if TYPE_CHECKING:
    from moe_lab.registry import Registry

Version = Annotated[str, typer.Argument(metavar="REF", help="owner/name@version.")]


def register(app: typer.Typer) -> None:
    """Adds these commands to the group."""
    for command in (retire, unretire):
        app.command()(command)


def open_registry(ctx: typer.Context) -> Registry:
    from moe_lab.registry import Registry

    return Registry(current_lab(ctx).registry_path, create=False)


def retire(
    ctx: typer.Context,
    ref: Version,
    reason: Annotated[str, typer.Option(help="Why; those who use the version will read it.")],
) -> None:
    """Take a version out of use. It still loads, with a warning, and its number is never used again.

    Example:
      moe-lab module retire snakes/python@1 --reason "trained on test text"
    """
    done = open_registry(ctx).retire(ref, reason)
    print(f"{'retired' if done.changed else 'already retired:'} {done.ref}: {done.reason}")


def unretire(
    ctx: typer.Context,
    ref: Version,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
) -> None:
    """Take a retired version back into use.

    Example:
      moe-lab module unretire snakes/python@1
    """
    done = open_registry(ctx).unretire(ref, reason)
    print(f"{done.ref} is in use again" if done.changed else f"{done.ref} is in use, it was not retired")
