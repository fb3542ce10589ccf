"""`moe-lab trunk`: pretrained models of others as trunks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_lab.cli.app import CommandGroup, next_command
from moe_lab.cli.session import open_registry, open_workspace
from moe_lab.errors import printable

trunk = typer.Typer(cls=CommandGroup, help="Bring a pretrained model in as a trunk, and look at trunks.")

Ref = Annotated[str, typer.Argument(metavar="REF", help="owner/name[@version], or a digest.")]


@trunk.command("import")
def import_(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(help="A Hugging Face folder with safetensors, or a GGUF file.")],
    name: Annotated[str, typer.Option(metavar="OWNER/NAME", help="What it is published as.")],
    routed_layers: Annotated[
        str, typer.Option(metavar="LAYERS", help="Where expert modules will work, counted from 0: 20-29, or 0,4,8-11.")
    ],
    block: Annotated[int, typer.Option(help="Hidden units of a block of a module; widths are multiples of it.")] = 128,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A tokenizer.json instead of the model's own.")
    ] = None,
    eos: Annotated[str | None, typer.Option(metavar="TOKEN", help="The token that ends a document.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights; what the file says if left out.")] = None,
    summary: Annotated[str, typer.Option(help="What it is, in a line.")] = "",
) -> None:
    """Publish a pretrained model as a trunk, exactly: what is not understood is refused by name.

    Example:
      moe-lab trunk import ./SmolLM2-135M --name hf/smollm2-135m --routed-layers 20-29 --block 128
    """
    from moe_lab.config import decode
    from moe_lab.jobs.spec import TrunkImport
    from moe_lab.jobs.trunk_import import import_trunk

    settings = {"name": name, "source": str(source), "routed_layers": routed_layers, "block": block}
    given = {"tokenizer": tokenizer and str(tokenizer), "eos": eos, "licence": licence, "summary": summary}
    spec = decode(TrunkImport, settings | given, "trunk import")
    done = import_trunk(open_workspace(ctx), spec, Path.cwd())
    trunk_spec, checkpoint = done.checkpoint.spec, done.checkpoint
    for note in checkpoint.notes:
        print(printable(f"note: {note}"))
    if checkpoint.licence is None and licence is None:
        print("note: the files name no licence; --licence records it")
    print(f"{'published' if done.created else 'already published'} {done.part.ref}\n  {done.part.digest}")
    print(
        f"  {checkpoint.family.name}, {done.parameters:,} parameters, {trunk_spec.num_layers} layers of "
        f"{trunk_spec.d_model}, {trunk_spec.vocab_size:,} tokens; modules work in layers {routed_layers}"
    )
    print(f"next: {next_command(ctx, 'trunk', 'check', done.part.ref)}")


@trunk.command("list")
def list_(ctx: typer.Context) -> None:
    """List the trunks that are published.

    Example:
      moe-lab trunk list
    """
    from moe_lab.cli.tables import print_table
    from moe_lab.jobs.trunk_list import list_trunks

    rows = [tuple(map(printable, row)) for row in list_trunks(open_registry(ctx))]
    if not rows:
        print(f"no trunks are published here yet\nnext: {next_command(ctx, 'trunk', 'import', '--help')}")
        return
    columns = ("trunk", "numbers", "routed layers", "family", "licence", "summary")
    print_table("trunks", columns, rows, right=("numbers",))


@trunk.command()
def show(ctx: typer.Context, ref: Ref) -> None:
    """Print what a trunk is: its shapes and switches, its tokenizer, where it came from.

    Example:
      moe-lab trunk show hf/smollm2-135m
    """
    import json

    from moe_lab.jobs.trunk_list import describe_trunk

    print(json.dumps(describe_trunk(open_registry(ctx), ref), indent=2))


@trunk.command()
def check(
    ctx: typer.Context,
    ref: Ref,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where it came from: its logits are compared with transformers'."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Positions to compare.", min=2)] = 512,
) -> None:
    """Run a trunk over a text, and compare it with the model it came from.

    Example:
      moe-lab trunk check hf/smollm2-135m --against ./SmolLM2-135M
    """
    from moe_lab.jobs.trunk_check import check_against, check_trunk

    workspace = open_workspace(ctx)
    score = check_trunk(workspace, ref)
    print(f"{score.ref}: {score.bits_per_byte:.3f} bits per byte of {score.bytes} bytes of English and Python")
    if against is None:
        return
    agreement = check_against(workspace, ref, against, tokens)
    print(
        f"  {agreement.positions} positions against transformers: largest difference {agreement.difference:.2e} of "
        f"the largest logit, KL {agreement.divergence:.2e} nats per token, "
        f"same best token at {agreement.same_best} of {agreement.positions}"
    )
    agreement.require()
    print("  the same model")
