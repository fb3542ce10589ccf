"""`moe-lab router` and `moe-lab distill`: what is contributed in code, and whether it keeps its contract."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_lab.cli.app import CommandGroup, current_lab
from moe_lab.errors import LabError, Refused, printable

if TYPE_CHECKING:
    from moe_lab.lab import Lab
    from moe_lab.lab.contributions import Category

router = typer.Typer(cls=CommandGroup, help="The kinds of router that a config may name, and their contract.")
distill = typer.Typer(cls=CommandGroup, help="The strategies of shrinking that a config may name, and their contract.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A folder of the lab, or the name that a package gave.")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its config, where the defaults will not do.")
]


@router.command("list")
def list_routers(ctx: typer.Context) -> None:
    """List the kinds of router, from their manifests.

    Example:
      moe-lab router list
    """
    _print_contributions(current_lab(ctx), "routers")


@distill.command("list")
def list_strategies(ctx: typer.Context) -> None:
    """List the strategies of shrinking, from their manifests.

    Example:
      moe-lab distill list
    """
    _print_contributions(current_lab(ctx), "distill")


@router.command("check")
def check_router(ctx: typer.Context, name: Name, settings: Settings = None) -> None:
    """Hold a router's class to the contract, rule by rule, on a made-up problem. Trains and publishes nothing.

    Example:
      moe-lab router check gain
      moe-lab router check gain ngrams=6
    """
    from moe_lab.routing.conformance import CHECKS, RouterBench
    from moe_lab.routing.router import Router

    cls, config = _chosen(current_lab(ctx), "routers", name, settings, Router)
    _report("router", name, settings, lambda: RouterBench(cls, config), CHECKS)


@distill.command("check")
def check_strategy(ctx: typer.Context, name: Name, settings: Settings = None) -> None:
    """Hold a shrinking strategy's class to the contract, rule by rule, on made-up numbers.

    Example:
      moe-lab distill check nested_prune
      moe-lab distill check nested_prune temperature=2
    """
    from moe_lab.experts.conformance import CHECKS, StrategyBench
    from moe_lab.experts.shrink import ShrinkStrategy

    cls, config = _chosen(current_lab(ctx), "distill", name, settings, ShrinkStrategy)
    _report("distill", name, settings, lambda: StrategyBench(cls, config), CHECKS)


def _print_contributions(lab: Lab, category: Category) -> None:
    from moe_lab.cli.tables import print_table

    rows = [
        (name, contribution.origin, printable(str(contribution.manifest["summary"])))
        for name, contribution in sorted(lab.contributions(category).items())
    ]
    print_table(f"{category} that this lab sees", ("name", "from", "summary"), rows)


def _chosen(
    lab: Lab, category: Category, name: str, settings: Sequence[str] | None, base: type[Any]
) -> tuple[type[Any], dict[str, Any]]:
    """The contributed class, and its settings after they were decoded once."""
    from moe_lab.config import apply_overrides

    given = apply_overrides({}, settings or ())
    cls, _ = lab.choose(category, {"type": name, **given}, base)
    return cls, given


def _report(
    group: str,
    name: str,
    settings: Sequence[str] | None,
    make: Callable[[], Any],
    checks: Sequence[Callable[[Any], None]],
) -> None:
    """Prints a line for each rule; a broken one does not keep the others from being asked."""
    try:
        bench = make()
    except Exception as error:
        raise LabError(f"{name} cannot be made: {_said(error)}") from error
    broken = 0
    for check in checks:
        rule = (check.__doc__ or check.__name__).partition("\n")[0]
        try:
            check(bench)
        except Exception as error:
            broken += 1
            print(f"FAIL  {rule}\n      {_said(error)}")
        else:
            print(f"ok    {rule}", flush=True)
    if broken:
        again = shlex.join(["moe-lab", group, "check", name, *(settings or ())])
        raise Refused(f"{name} breaks {broken} of {len(checks)} rules; mend them, then: {again}")
    print(f"{name} keeps all {len(checks)} rules")


def _said(error: Exception) -> str:
    """What a broken rule says, or what the contributed code raised, in one line."""
    if os.environ.get("MOE_LAB_TRACEBACK"):
        raise error
    text = " ".join(str(error).split())
    return printable(text if isinstance(error, AssertionError) and text else f"{type(error).__name__}: {text}")
