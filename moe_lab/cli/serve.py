"""`moe-lab serve`: a composed model for clients over HTTP; `moe-lab usage`: what they used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from moe_lab.cli.app import current_lab
from moe_lab.cli.session import open_workspace
from moe_lab.errors import LabError, Unavailable

LEDGER = Path("usage") / "ledger.jsonl"
BATCHES = Path("batches")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    ctx: typer.Context,
    composition: Annotated[str, typer.Argument(help="A composition config, or a lockfile.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes any that is free.")] = 8000,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Texts that are written side by side.")] = 8,
    room: Annotated[int, typer.Option("--room", min=16, help="Tokens of a text, prompt included.")] = 2048,
    waiting: Annotated[int, typer.Option("--waiting", min=0, help="Texts that may wait for a slot.")] = 64,
    guesses: Annotated[
        int, typer.Option("--guesses", min=0, max=16, help="Tokens to guess from the text and check at once; 0: none.")
    ] = 0,
    keep: Annotated[
        int, typer.Option("--keep", min=0, help="MiB of what texts have read to keep for those that begin alike.")
    ] = 256,
) -> None:
    """Serve a composed model as OpenAI's clients expect it.

    POST /v1/completions and /v1/chat/completions with price, without and domain beside OpenAI's fields; files of
    requests at /v1/files and /v1/batches; GET /v1/models, /health, /metrics, and a page at /. On other addresses than
    this machine's own it wants MOE_LAB_API_KEY set, and asks clients for it.
    Ctrl-C or SIGTERM finishes what is being written; batches go on at the next start.

    Example:
      moe-lab serve quickstart/composition
      moe-lab serve quickstart/composition --port 9000 --slots 16 --room 1024
    """
    lab = current_lab(ctx)
    api_key = os.environ.get("MOE_LAB_API_KEY") or None
    if host not in _LOOPBACK and api_key is None:
        raise LabError(
            f"--host {host} lets other machines in; set MOE_LAB_API_KEY to what they must send, or leave --host out"
        )
    try:
        from moe_lab.serving.app import Limits
        from moe_lab.serving.run import serve as run
    except ImportError as error:
        raise Unavailable(f"serving needs {error.name}: pip install 'moe-lab[serve]'") from None
    workspace = open_workspace(ctx)
    lock = workspace.find_lock(composition, Path.cwd())
    run(
        workspace.load_model(lock),
        lock,
        lab.runs / LEDGER,
        lab.runs / BATCHES,
        host=host,
        port=port,
        slots=slots,
        capacity=room,
        most_waiting=waiting,
        guesses=guesses,
        keep_bytes=keep << 20,
        api_key=api_key,
        limits=Limits(),
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )


def usage(
    ctx: typer.Context,
    by: Annotated[str, typer.Option("--by", help="owner, module or day.")] = "owner",
) -> None:
    """Sum what served texts used, from the ledger of this lab.

    Example:
      moe-lab usage
      moe-lab usage --by day
    """
    from moe_lab.cli.tables import print_table
    from moe_lab.serving.usage import sum_use

    if by not in ("owner", "module", "day"):
        raise LabError(f'--by {by}: must be "owner", "module" or "day"')
    used, torn = sum_use(current_lab(ctx).runs / LEDGER, by)  # type: ignore[arg-type]
    if not used:
        print("nothing was served yet: moe-lab serve COMPOSITION")
        return
    rows = [(use.name, f"{use.texts:,}", f"{use.tokens:,}", f"{use.multiply_adds:,}") for use in used]
    print_table(f"what served texts used, by {by}", (by, "texts", "tokens", "multiply-adds"), rows, right=("texts",))
    if torn:
        print(f"{torn} lines were torn by a crash and count nothing")
