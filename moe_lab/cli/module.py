"""`moe-lab module`: contribute a module, and look into the registry."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from moe_lab.cli import interchange, registry_care
from moe_lab.cli.app import CommandGroup, current_lab, next_command
from moe_lab.cli.fetch import fetch
from moe_lab.cli.lineage_tree import tree_lines
from moe_lab.cli.session import open_registry, open_workspace
from moe_lab.cli.signing import KeyOption, print_signatures, read_key, sign
from moe_lab.errors import LabError, counted, printable

if TYPE_CHECKING:
    from moe_lab.registry import Registry

module = typer.Typer(cls=CommandGroup, help="Contribute a module, and look into the registry.")

Config = Annotated[str, typer.Argument(help="A trained config: a YAML file, or a name in modules/ or configs/.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="owner/name[@version], or a digest.")]


@module.command()
def new(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Lowercase letters, digits and underscores.")],
    owner: Annotated[str, typer.Option(help="Your team.")],
    trunk: Annotated[str, typer.Option(help="The published trunk to train beside, owner/name.")],
    text: Annotated[str, typer.Option(help="A glob of UTF-8 text files to learn from.")],
    licence: Annotated[str, typer.Option(help="Under which licence the module may be used, e.g. Apache-2.0.")],
    width: Annotated[int, typer.Option(help="Hidden units per routed layer.")] = 256,
) -> None:
    """Make the folder of a new module, ready to train.

    Example:
      moe-lab module new poems --owner bards --trunk lab/quickstart-trunk --text "~/poems/*.txt" --licence CC0-1.0
    """
    from moe_lab.jobs.scaffold import new_module

    folder = new_module(current_lab(ctx), name, owner=owner, trunk=trunk, text=text, width=width, licence=licence)
    print(f"made {folder}; routers and evaluations may name its text as the domain {name}")
    print(f"next: {next_command(ctx, 'train', name)}\nthen: {next_command(ctx, 'module', 'publish', name)}")


@module.command()
def check(ctx: typer.Context, config: Config, overrides: Overrides = None) -> None:
    """Run the admission test on a module that was trained.

    Example:
      moe-lab module check python
    """
    from moe_lab.jobs.admission import check_module, require_admission

    workspace, candidate, spec, base = _trained(ctx, config, overrides)
    if spec.kind not in ("module", "distill"):
        raise LabError(f"{config} is a {spec.kind}; the admission test is for modules")
    findings = check_module(workspace, candidate, spec, base)
    for finding in findings:
        print(f"{'ok  ' if finding.passed else 'FAIL'}  {finding.check}: {finding.detail}")
    require_admission(findings, candidate.name)
    print(f"{candidate.name} is ready\nnext: {next_command(ctx, 'module', 'publish', config, *(overrides or ()))}")


@module.command()
def publish(ctx: typer.Context, config: Config, overrides: Overrides = None, key: KeyOption = None) -> None:
    """Publish what was trained: a module (after its admission test), a trunk or a router.

    Example:
      moe-lab module publish python --key snakes
    """
    from moe_lab.jobs.publish import publish_checked

    name = key or current_lab(ctx).key_name
    signer = read_key(name) if name else None  # before the work: it may ask for a passphrase
    workspace, candidate, spec, base = _trained(ctx, config, overrides)
    workspace.registry.key = signer
    part, created = publish_checked(workspace, candidate, spec, base)
    print(f"{'published' if created else 'already published'} {part.ref}\n  {part.digest}")
    if signer:
        print(f"  signed by {signer.public}")


def _trained(ctx: typer.Context, config: str, overrides: list[str] | None) -> tuple[Any, Any, Any, Any]:
    """The candidate that training left behind; training is not started here."""
    path = current_lab(ctx).find_config(config)
    from moe_lab.jobs.train import load_training, train_spec

    spec, base = load_training(path, overrides or ()), path.parent.absolute()
    workspace = open_workspace(ctx, may_start_runs=False)
    return workspace, train_spec(workspace, spec, base), spec, base


@module.command("list")
def list_(
    ctx: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Trunks and routers too.")] = False,
) -> None:
    """List what is published.

    Example:
      moe-lab module list --all
    """
    registry = open_registry(ctx)
    entries = [entry for entry in registry.list() if everything or entry.kind in ("module", "")]
    _note_unknown_owners(registry, sys.stderr)  # the list itself is for other programs too
    if not entries:
        print("no modules are published here yet\nnext: moe-lab module publish CONFIG, or moe-lab run quickstart")
        return
    widest = max(len(str(entry.ref)) for entry in entries)
    for entry in entries:
        if entry.problem:
            unreadable = "" if entry.problem.startswith("untrusted: ") else "unreadable: "
            print(printable(f"{entry.ref!s:{widest}}  {unreadable}{entry.problem}"))
            continue
        ladder = "/".join(map(str, entry.ladder)) or entry.kind
        retired = f"  retired: {entry.retired}" if entry.retired else ""
        print(printable(f"{entry.ref!s:{widest}}  {ladder:>16}  {entry.digest[7:19]}  {entry.summary}{retired}"))


def _note_unknown_owners(registry: Registry, out: TextIO) -> None:
    for line in registry.unknown_owners():
        print(printable(f"note: {line}"), file=out)


@module.command()
def show(ctx: typer.Context, ref: Ref) -> None:
    """Print the manifest of an artifact.

    Example:
      moe-lab module show snakes/python@1
    """
    import json

    registry = open_registry(ctx)
    manifest = registry.manifest(ref)
    shown = {key: value for key, value in manifest.items() if key != "tensors"}
    shown["tensors"] = {
        name: f"{record['dtype']}{record['shape']} in {len(record['chunks'])} chunks"
        for name, record in manifest["tensors"].items()
    }
    print(f"{manifest.label}  {manifest.digest}\n{json.dumps(shown, indent=2, sort_keys=True)}")
    print_signatures(registry, manifest)


@module.command()
def verify(
    ctx: typer.Context,
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="One artifact; all if left out.")] = None,
) -> None:
    """Hash every stored byte, check every signature, and name whatever is damaged or not trusted.

    Example:
      moe-lab module verify
    """
    registry = open_registry(ctx)
    report = registry.verify(ref)
    for problem in report.problems:
        print(printable(problem if problem.startswith("untrusted: ") else f"damaged: {problem}"))
    _note_unknown_owners(registry, sys.stdout)
    print(f"read {report.files} files, {report.bytes:,} bytes: {counted(len(report.problems), 'problem')}")
    if not report.ok:
        raise LabError(
            f"{counted(len(report.problems), 'problem')}; publish damaged artifacts again, or restore their files; "
            "have untrusted ones signed, or do not use them"
        )


@module.command()
def lineage(
    ctx: typer.Context,
    ref: Ref,
    picture: Annotated[str | None, typer.Option(metavar="FILE.svg", help="Draw it as well.")] = None,
) -> None:
    """Print where an artifact comes from, as a tree.

    Example:
      moe-lab module lineage snakes/python-mini --picture lineage.svg
    """
    root = open_registry(ctx).lineage(ref)
    for line in tree_lines(root):
        print(line)
    if picture is not None:
        registry_care.draw_lineage(root, picture)


module.command()(sign)
module.command()(fetch)
module.command()(interchange.export)
module.command("import")(interchange.import_)
registry_care.register(module)
