"""`moe-lab schema`: JSON Schemas of the files people write, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from moe_lab.errors import LabError, did_you_mean


def schema(
    kind: Annotated[str | None, typer.Argument(help="The kind to print or write; all of them if left out.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write <kind>.schema.json files into this folder."),
    ] = None,
) -> None:
    """Print or write JSON Schemas for editors.

    With the schema of a kind of file, an editor completes and checks what you write.

    Example:
      moe-lab schema module
      moe-lab schema --out schemas

    Then put this line on top of a YAML file (VS Code and others read it):
      # yaml-language-server: $schema=schemas/module.schema.json
    """
    from moe_lab.config import KINDS

    known = [*KINDS, *_MANIFEST_KINDS]
    if kind is not None and kind not in known:
        raise LabError(f'unknown kind "{kind}".{did_you_mean(kind, known)}')
    if out is None:
        if kind is None:
            raise LabError(f"say which kind, or where to write all of them with --out DIR.{did_you_mean('', known)}")
        print(_text(kind))
        return
    texts = {f"{name}.schema.json": _text(name) for name in ([kind] if kind else known)}
    if out.exists() and not out.is_dir():
        raise LabError(f"--out {out} is a file; name a folder to write the .schema.json files into")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text + "\n", encoding="utf-8")
        print(out / name)


_MANIFEST_KINDS = {"router-manifest": "routers", "strategy-manifest": "distill"}


def _text(kind: str) -> str:
    from moe_lab.config import json_schema
    from moe_lab.lab.manifest import MANIFESTS

    if kind in _MANIFEST_KINDS:
        document = MANIFESTS[_MANIFEST_KINDS[kind]].model_json_schema()
    else:
        document = json_schema(kind)
    return json.dumps(document, indent=2)
