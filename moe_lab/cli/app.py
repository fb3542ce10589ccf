"""The shell around the subcommands: finding them lazily, the options they share, and how failures look."""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from moe_lab import __version__
from moe_lab.cli.commands import COMMANDS
from moe_lab.cli.failures import explain
from moe_lab.cli.terminal import spell_what_is_missing
from moe_lab.errors import Interrupted, LabError, did_you_mean, printable

if TYPE_CHECKING:
    from moe_lab.lab import Lab


class CommandGroup(TyperGroup):
    """A group of commands: alone it prints its help, and a miss names the nearest command.

    Use as `typer.Typer(cls=CommandGroup)`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            print(ctx.get_help())
            raise typer.Exit
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            group = ctx.command_path.partition(" ")[2]
            raise LabError(f'unknown command "{f"{group} {args[0]}".strip()}".{did_you_mean(args[0], names)}')
        return super().resolve_command(ctx, args)


class CommandWithOthers(TyperGroup):
    """A command with others below it: a first word that is none of their names is an argument of its own.

    Use as `typer.Typer(cls=CommandWithOthers, invoke_without_command=True)`; its callback is the command, and those
    below run without it.
    """

    allow_interspersed_args = True  # as a command has it, and a group has not

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if args and args[0] in self.commands:
            below = self.commands[args[0]]
            return below.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


class _LazyGroup(CommandGroup):
    """The top level: its commands are named in a table and imported when they are needed."""

    table: Mapping[str, str] = COMMANDS

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # Typer would make a bare exit code of it, without what the open runs said of themselves.
            raise Interrupted(signal.SIGINT) from error

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        module, _, attribute = self.table[cmd_name].partition(":")
        command = _click_command(getattr(importlib.import_module(module), attribute))
        command.name = cmd_name
        return command


def _click_command(target: typer.Typer | Callable[..., Any]) -> Any:
    if isinstance(target, typer.Typer):
        command: Any = typer.main.get_group(target)
    else:
        app = typer.Typer(add_completion=False)
        app.command()(target)
        command = typer.main.get_command(app)
    _plain_help(command)
    return command


def _plain_help(command: Any) -> None:
    """Makes help plain text that keeps the lines of its indented paragraphs, the examples.

    Drawing it with rich would double the time to the first line.
    """
    command.rich_markup_mode = None
    paragraphs = (command.help or "").split("\n\n")
    command.help = "\n\n".join(f"\b\n{text}" if "\n  " in f"\n{text}" else text for text in paragraphs)
    for below in getattr(command, "commands", {}).values():
        _plain_help(below)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"moe-lab {__version__}")
        raise typer.Exit


def _options(
    ctx: typer.Context,
    lab: Annotated[
        str | None,
        typer.Option("--lab", metavar="DIR", help="The lab to work in, instead of the one around this folder."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train expert modules apart, publish them, and compose them into one model.

    Example:
      moe-lab init my-lab
      moe-lab run configs/quickstart.yaml
      moe-lab COMMAND --help
    """
    ctx.obj = lab


def current_lab(ctx: typer.Context) -> Lab:
    """Returns the lab that the options and the folder of this call mean."""
    from moe_lab.lab import find_lab  # brings pydantic, which help and --version can do without

    return find_lab(ctx.find_root().obj)


def next_command(ctx: typer.Context, *words: str) -> str:
    """Returns a command line for a person to paste into a shell, in the same lab as this call."""
    lab = ctx.find_root().obj
    return shlex.join(["moe-lab", *(["--lab", lab] if lab else []), *words])


def root_command(table: Mapping[str, str] = COMMANDS) -> Any:
    """Returns the whole command, its subcommands not imported yet."""
    app = typer.Typer(cls=_LazyGroup, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    app.callback()(_options)
    group = _click_command(app)
    group.table = table
    return group


def main(argv: Sequence[str] | None = None, table: Mapping[str, str] = COMMANDS) -> int:
    """Runs one command line and returns the exit code.

    A user's mistake, or what the system refuses, is one line and 2, an interruption 130, a SIGTERM 143. Whatever else
    goes wrong is ours and keeps its traceback; MOE_LAB_TRACEBACK=1 keeps it for mistakes as well.

    Args:
        argv: the arguments after the program's name; by default those of this process.
        table: the subcommands, as in `COMMANDS`.
    """
    spell_what_is_missing()
    arguments = list(sys.argv[1:] if argv is None else argv)
    kept = ""
    try:
        with _heeding_sigterm():
            code = root_command(table)(args=arguments, prog_name="moe-lab", standalone_mode=False)
    except Exception as error:
        message = explain(error) or _missing_platform(error)
        if message is None or os.environ.get("MOE_LAB_TRACEBACK"):
            raise
        print(f"error: {message}", file=sys.stderr)
        _leave(2)
        return 2
    except Interrupted as stopped:
        code, kept = 128 + stopped.signum, _what_is_kept(stopped)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        where = f" {kept}" if kept else ". To do it again"
        print("\n" + printable(f"interrupted{where}: {shlex.join(['moe-lab', *arguments])}"), file=sys.stderr)
    code = code if isinstance(code, int) else 0
    _leave(code)
    return code


def _what_is_kept(stopped: Interrupted) -> str:
    """Says what the same command will not do again; empty if no run was open, so that nothing is known."""
    if stopped.kept:
        return f"after {stopped.kept}, which is saved. To go on from there"
    # Each open run has said it of itself, the innermost first.
    runs = getattr(stopped, "__notes__", []) or getattr(stopped.__cause__, "__notes__", [])
    return f"({'; '.join(runs)}). To go on" if runs else ""


def _missing_platform(error: Exception) -> str | None:
    """Returns the line for a JAX_PLATFORMS that this machine has not: jax says it with errors of several types."""
    jax = sys.modules.get("jax") if isinstance(error, AssertionError | RuntimeError) else None
    wanted = jax.config.jax_platforms if jax else None
    if not jax or not wanted:
        return None
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as missing:
        said = " ".join(str(missing).split())
        return (
            f"JAX_PLATFORMS={wanted}: jax finds no such device here{f' ({said[:200]})' if said else ''}; "
            "unset it to use what there is, or set JAX_PLATFORMS=cpu"
        )
    return None


@contextlib.contextmanager
def _heeding_sigterm() -> Iterator[None]:
    """Lets a SIGTERM end the work as an interruption does: what is open is closed, and a line says how to go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise Interrupted(signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(code: int) -> None:
    """Ends a process that works with others; only commands that imported jax can be one."""
    if "jax" in sys.modules:
        from moe_lab.training.processes import leave

        leave(code)
