"""What is said of published trunks. Imports no array library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moe_lab.artifacts.trunk import TrunkArtifact
from moe_lab.errors import LabError
from moe_lab.registry import Registry


def list_trunks(registry: Registry) -> Iterator[tuple[str, ...]]:
    """Name, numbers, routed layers, family, licence and summary of each; of one that is damaged, the problem."""
    for entry in registry.list():
        if entry.problem:
            if entry.kind in ("trunk", ""):
                yield str(entry.ref), "", "", "", "", entry.problem
        elif entry.kind == "trunk":
            manifest = registry.manifest(entry.digest)
            trunk = TrunkArtifact.of(manifest, str(entry.ref))
            layers = f"{len(trunk.spec.routed_layers)} of {trunk.spec.num_layers}"
            family = (trunk.origin or {}).get("family", "trained here")
            numbers = f"{manifest.count_numbers():,}"
            yield str(entry.ref), numbers, layers, family, trunk.licence or "", entry.summary


def describe_trunk(registry: Registry, ref: str) -> dict[str, Any]:
    """All that a trunk says of itself but for its tensors."""
    manifest = registry.manifest(ref)
    if manifest.kind != "trunk":
        raise LabError(f"{ref} is a {manifest.kind} and no trunk; moe-lab module show {ref} prints it")
    trunk = TrunkArtifact.of(manifest, ref)
    return {
        "name": manifest.label,
        "digest": manifest.digest,
        "summary": trunk.summary,
        "licence": trunk.licence,
        "origin": trunk.origin,
        "tokenizer": trunk.tokenizer.model_dump(mode="json", exclude_none=True),
        "ends": list(trunk.ends),
        "trunk": trunk.spec.model_dump(mode="json", exclude_none=True),
        "claims": list(trunk.claims),
    }
