"""Sections of what is made from a published artifact without training: one rung of it, or an imported copy.

What this version does not know in them stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_lab.artifacts.artifact import read_object
from moe_lab.artifacts.module import KIND, layer_blocks
from moe_lab.errors import NotFound, printable
from moe_lab.experts.interface import Interface, blocks_of, declared_cost
from moe_lab.registry.manifest import Manifest, Parent, TensorRecord

IMPORT, WHOLE = "import", "whole"
"""Relations to the artifact that a copy or a rung came from."""


def cut_to_rung(manifest: Manifest, ref: str, width: int) -> tuple[dict[str, Any], dict[str, TensorRecord]]:
    """The sections and the tensors' shapes of one rung: whole blocks from the front, and what is true of them.

    Args:
        ref: the name of the whole artifact, for the rung's lineage.
        width: of the rung, in hidden units.
    """
    sections, ladder = manifest.sections, manifest.get("ladder")
    if manifest.kind != KIND or not isinstance(ladder, list) or width not in ladder:
        rungs = ", ".join(map(str, ladder)) if isinstance(ladder, list) else "none"
        raise NotFound(f"{manifest.label} has no rung of width {width}. Its ladder: {printable(rungs)}.")
    if width == ladder[-1]:
        return sections, manifest.records
    interface = Interface.from_json(sections["interface"])
    count = blocks_of(width, interface.block)
    records = {name: _narrowed(record, count) for name, record in manifest.records.items()}
    rungs_left = [rung for rung in ladder if rung <= width]
    whole = Parent(ref, manifest.digest, WHOLE)
    return {
        **sections,
        "ladder": rungs_left,
        "cost": declared_cost(interface, layer_blocks(records, interface.expert_kind), rungs_left),
        "claims": [claim for claim in sections.get("claims", []) if claim["width"] <= width],
        "lineage": _with_parent(sections, whole),
    }, records


def mark_imported(sections: Mapping[str, Any], ref: str, digest: str, *, measured: bool) -> dict[str, Any]:
    """The sections of content that is not what an artifact is, or is published under another name.

    Args:
        sections: what the content came with.
        ref: what the artifact is called that it came from; its digest if it has no name.
        measured: the claims were measured here, so they are nobody else's.
    """
    claims = sections["claims"]
    if measured:
        claims = [{key: value for key, value in claim.items() if key != "stated_by"} for claim in claims]
    else:
        claims = [{"stated_by": ref, **claim} for claim in claims]
    known = any(parent["digest"] == digest for parent in sections["lineage"]["parents"])
    lineage = sections["lineage"] if known else _with_parent(sections, Parent(ref, digest, IMPORT))
    return {**sections, "lineage": lineage, "claims": claims}


def _with_parent(sections: Mapping[str, Any], parent: Parent) -> dict[str, Any]:
    lineage = read_object(sections, "lineage")
    return {**lineage, "parents": [*lineage.get("parents", []), dataclasses.asdict(parent)]}


def _narrowed(record: TensorRecord, blocks: int) -> TensorRecord:
    if not record.blocks or record.shape[0] <= blocks:
        return record
    return dataclasses.replace(record, shape=(blocks, *record.shape[1:]), chunks=record.chunks[:blocks])
