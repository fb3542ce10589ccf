"""Writes a published artifact, or one rung of a module, as a folder that other programs can read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_lab.errors import NotFound, printable
from moe_lab.experts.interface import Interface, blocks_of, declared_cost, layer_blocks
from moe_lab.registry import ArtifactRef, Manifest, Registry
from moe_lab.registry.interchange import Card, write_folder
from moe_lab.registry.manifest import TensorRecord

SECTIONS_OF_TENSORS = ("format", "tensors")


def export_artifact(registry: Registry, text: str, folder: Path) -> Card:
    """Writes the folder, which must not exist, and returns its card.

    Args:
        text: `owner/name[@version][:width]` or a digest. A width exports that rung of a module's ladder.
    """
    resolved = registry.resolve(text)
    manifest = registry.manifest(resolved.digest)
    manifest.label = str(resolved.ref or resolved.digest)
    sections = {key: value for key, value in manifest.items() if key not in SECTIONS_OF_TENSORS}
    records: Mapping[str, TensorRecord] = manifest.records
    if resolved.ref is not None and resolved.ref.width is not None:
        sections, records = _cut(manifest, sections, resolved.ref)
    blocks = frozenset(name for name, record in records.items() if record.blocks)
    ref = None if resolved.ref is None else str(resolved.ref)
    card = Card(ref, resolved.digest, sections, frozenset(records), blocks)

    def read(name: str) -> Any:
        rows = slice(0, records[name].shape[0]) if name in blocks else None
        return registry.tensor(manifest, name, rows)

    write_folder(folder, card, _readme(card, records), records, read)
    return card


def _cut(
    manifest: Manifest, sections: dict[str, Any], ref: ArtifactRef
) -> tuple[dict[str, Any], dict[str, TensorRecord]]:
    """The sections and the tensors' shapes of one rung: whole blocks from the front, and what is true of them."""
    width, ladder = ref.width, sections.get("ladder")
    assert width is not None
    if sections["kind"] != "module" or not isinstance(ladder, list) or width not in ladder:
        rungs = ", ".join(map(str, ladder)) if isinstance(ladder, list) else "none"
        raise NotFound(f"{manifest.label} has no rung of width {width}. Its ladder: {printable(rungs)}.")
    if width == ladder[-1]:
        return sections, manifest.records
    interface = Interface.from_json(sections["interface"])
    count = blocks_of(width, interface.block)
    records = {name: _narrowed(record, count) for name, record in manifest.records.items()}
    rungs_left = [rung for rung in ladder if rung <= width]
    widths = layer_blocks({name: record.as_json() for name, record in records.items()})
    whole = {"ref": str(dataclasses.replace(ref, width=None)), "digest": manifest.digest, "relation": "whole"}
    lineage = sections.get("lineage", {})
    return {
        **sections,
        "ladder": rungs_left,
        "cost": declared_cost(interface, widths, rungs_left),
        "claims": [claim for claim in sections.get("claims", []) if claim["width"] <= width],
        "lineage": {**lineage, "parents": [*lineage.get("parents", []), whole]},
    }, records


def _narrowed(record: TensorRecord, blocks: int) -> TensorRecord:
    if not record.blocks or record.shape[0] <= blocks:
        return record
    return dataclasses.replace(record, shape=(blocks, *record.shape[1:]), chunks=record.chunks[:blocks])


def _readme(card: Card, records: Mapping[str, TensorRecord]) -> str:
    """The card in words. Everything a stranger wrote stands in code spans, where neither HTML nor Markdown works."""
    sections = card.sections
    rows = [
        ("kind", sections["kind"]),
        ("summary", sections.get("summary")),
        ("from", card.ref),
        ("manifest", card.digest),
        ("licence", sections.get("licence")),
        ("interface", sections.get("interface")),
        ("size", f"{sum(record.total_bytes for record in records.values()):,} bytes in {len(records)} tensors"),
    ]
    parts = [f"# {_code(card.ref or card.digest)}", _table(("what", "value"), rows)]
    parts += _section("Ladder", ("width", "multiply-adds per token"), _ladder_rows(sections))
    claims = ("width", "metric", "value", "domain", "split", "rows", "stated_by")
    parts += _section("Claims, as its publisher states them", claims, _picked(sections.get("claims"), claims))
    parents = ("relation", "ref", "digest")
    lineage = sections.get("lineage")
    above = lineage.get("parents") if isinstance(lineage, dict) else None
    parts += _section("Lineage", parents, _picked(above, parents))
    parts.append(f"## Use\n\n{_use(card)}")
    return "\n\n".join(parts) + "\n"


def _use(card: Card) -> str:
    holds = "`model.safetensors` holds the tensors, `card.json` everything else."
    if card.sections["kind"] != "module":
        return holds
    rung = card.ref is None or ArtifactRef.parse(card.ref).width is not None
    command = f"moe-lab module import FOLDER{' --as OWNER/NAME' if rung else ''}"
    return (
        f"{holds} Tensors are cut along axis 0 into blocks of hidden units; the first ones are a narrower module. "
        f"A registry that has the trunk takes the folder back:\n\n    {command}"
    )


def _ladder_rows(sections: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    ladder, cost = sections.get("ladder"), sections.get("cost")
    costs = cost if isinstance(cost, dict) else {}
    return [(rung, costs.get(str(rung))) for rung in ladder] if isinstance(ladder, list) else []


def _picked(entries: Any, keys: tuple[str, ...]) -> list[tuple[Any, ...]]:
    entries = entries if isinstance(entries, list) else []
    return [tuple(entry.get(key) for key in keys) for entry in entries if isinstance(entry, dict)]


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
