"""Writes a published artifact, or one rung of a module, as a folder that other programs can read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_lab.artifacts.card import CLAIM_COLUMNS, PARENT_COLUMNS, SectionsForPeople
from moe_lab.artifacts.derived import cut_to_rung
from moe_lab.artifacts.module import KIND as MODULE
from moe_lab.errors import printable
from moe_lab.registry import ArtifactRef, Registry
from moe_lab.registry.interchange import Card, write_folder
from moe_lab.registry.manifest import TensorRecord


def export_artifact(registry: Registry, text: str, folder: Path) -> Card:
    """Writes the folder, which must not exist, and returns its card.

    Args:
        text: `owner/name[@version][:width]` or a digest. A width exports that rung of a module's ladder.
    """
    resolved = registry.resolve(text)
    manifest = registry.manifest(resolved.digest)
    manifest.label = str(resolved.ref or resolved.digest)
    sections, records = manifest.sections, manifest.records
    if resolved.ref is not None and resolved.ref.width is not None:
        whole = dataclasses.replace(resolved.ref, width=None)
        sections, records = cut_to_rung(manifest, str(whole), resolved.ref.width)
    blocks = frozenset(name for name, record in records.items() if record.blocks)
    ref = None if resolved.ref is None else str(resolved.ref)
    card = Card(ref, resolved.digest, sections, frozenset(records), blocks)

    def read(name: str) -> Any:
        rows = slice(0, records[name].shape[0]) if name in blocks else None
        return registry.tensor(manifest, name, rows)

    write_folder(folder, card, _readme(card, records), records, read)
    return card


def _readme(card: Card, records: Mapping[str, TensorRecord]) -> str:
    """The card in words. Everything a stranger wrote stands in code spans, where neither HTML nor Markdown works."""
    shown = SectionsForPeople.of(card.sections)
    rows = [
        ("kind", shown.kind),
        ("summary", shown.summary),
        ("from", card.ref),
        ("manifest", card.digest),
        ("licence", shown.licence),
        ("interface", shown.interface),
        ("size", f"{sum(record.total_bytes for record in records.values()):,} bytes in {len(records)} tensors"),
    ]
    parts = [f"# {_code(card.ref or card.digest)}", _table(("what", "value"), rows)]
    parts += _section("Ladder", ("width", "multiply-adds per token"), shown.rungs)
    parts += _section("Claims, as its publisher states them", CLAIM_COLUMNS, shown.claims)
    parts += _section("Lineage", PARENT_COLUMNS, shown.parents)
    parts.append(f"## Use\n\n{_use(card, shown.kind)}")
    return "\n\n".join(parts) + "\n"


def _use(card: Card, kind: Any) -> str:
    holds = "`model.safetensors` holds the tensors, `card.json` everything else."
    if kind != MODULE:
        return holds
    rung = card.ref is None or ArtifactRef.parse(card.ref).width is not None
    command = f"moe-lab module import FOLDER{' --as OWNER/NAME' if rung else ''}"
    return (
        f"{holds} Tensors are cut along axis 0 into blocks of hidden units; the first ones are a narrower module. "
        f"A registry that has the trunk takes the folder back:\n\n    {command}"
    )


def _section(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    return [f"## {title}", _table(head, rows)] if rows else []


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(map(_code, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(value: Any) -> str:
    """A code span that nothing inside can end: no back-tick, no bar, no angle bracket, no control character."""
    if value is None or value == "":
        return ""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    for mark, escaped in (("`", "'"), ("|", "\\u007c"), ("<", "\\u003c"), (">", "\\u003e")):
        text = text.replace(mark, escaped)
    return f"`{printable(text)}`"
