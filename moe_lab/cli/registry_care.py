"""The commands of `moe-lab module` that look after a registry."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_lab.cli.session import open_registry
from moe_lab.errors import LabError, classify, counted

if TYPE_CHECKING:
    from moe_lab.registry import LineageNode

Ref = Annotated[str, typer.Argument(metavar="REF", help="owner/name[@version], or a digest.")]
Version = Annotated[str, typer.Argument(metavar="REF", help="owner/name@version.")]


def register(app: typer.Typer) -> None:
    """Adds these commands to the group."""
    for command in (retire, unretire, gc, mirror, diff):
        app.command()(command)


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
    print(f"{'retired' if done.changed else 'already retired'} {done.ref}: {done.reason}")


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
    print(f"{done.ref} is in use again" if done.changed else f"{done.ref} is in use; it was not retired")


def diff(ctx: typer.Context, old: Ref, new: Ref) -> None:
    """Say how the second artifact differs from the first, and how much they share.

    Example:
      moe-lab module diff snakes/python@1 snakes/python@2
    """
    difference = open_registry(ctx).diff(old, new)
    for section in difference.sections:
        print(f"{section.path}: {_short(section.old)} -> {_short(section.new)}")
    for tensor in difference.tensors:
        shapes = [f"{record.dtype}{list(record.shape)}" for record in (tensor.old, tensor.new) if record]
        print(
            f"{tensor.name}: {tensor.change} {' -> '.join(dict.fromkeys(shapes))}, "
            f"{tensor.chunks} of {tensor.of_chunks} chunks, {tensor.bytes:,} bytes"
        )
    equal = (
        f"{difference.equal_tensors} tensors are equal"
        if difference.tensors or difference.sections
        else "no difference"
    )
    print(
        f"{equal}; {difference.shared_bytes:,} bytes are shared, "
        f"of {difference.old_bytes:,} and {difference.new_bytes:,}"
    )


def _short(value: Any) -> str:
    import json

    from moe_lab.registry.diff import ABSENT

    text = repr(value) if value is ABSENT else json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 100 else f"{text[:99]}…"


def draw_lineage(node: LineageNode, picture: str) -> None:
    """Writes the drawing; a file that is there is replaced, as any output is."""
    from pathlib import Path

    from moe_lab.registry import lineage_svg

    path = Path(picture).expanduser()
    if path.suffix != ".svg":
        raise LabError(f"{picture!a} is not the name of a picture: it must end in .svg.")
    try:
        path.write_text(lineage_svg(node), encoding="utf-8")
    except OSError as error:
        raise classify(error)(f"{path} cannot be written: {error.strerror}; choose another place.") from None
    print(f"drew {path}")


def gc(
    ctx: typer.Context,
    grace: Annotated[
        str, typer.Option(help="Keep what is younger: a number with s, m, h or d. 0 only if nobody publishes.")
    ] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files, delete nothing.")] = False,
) -> None:
    """Delete stored content that nothing published uses, and files that killed publishers left.

    Example:
      moe-lab module gc --dry-run
    """
    done = open_registry(ctx).gc(_seconds(grace), dry_run)
    for key in done.files if dry_run else ():
        print(key)
    verb, effect = ("would delete", "freeing") if dry_run else ("deleted", "freed")
    print(f"{verb} {len(done.files)} files, {effect} {done.bytes:,} bytes; {done.young} younger unused files stay")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)", text)
    if not match or (not match[2] and float(match[1])):
        raise LabError(f"{text!a} is not a length of time; write a number with s, m, h or d, such as 12h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def mirror(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="The registry to copy to; made if it is not there.")],
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF]...", help="owner/name[@version]; everything if left out.")
    ] = None,
    parents: Annotated[bool, typer.Option("--parents", help="Also the manifests of all ancestors.")] = False,
) -> None:
    """Copy artifacts to another registry, hashing every byte; again to go on, or to bring it up to date.

    Example:
      moe-lab module mirror /backup/registry
    """
    done = open_registry(ctx).mirror(target, refs or None, parents)
    for ref in done.copied:
        print(f"copied {ref}")
    for problem in done.problems:
        print(f"problem: {problem}")
    print(
        f"copied {len(done.copied)} artifacts, {len(done.present)} were there; {done.files} files, {done.bytes:,} bytes"
    )
    if not done.ok:
        raise LabError(f"{counted(len(done.problems), 'problem')}; all else was copied, and running it again continues")
