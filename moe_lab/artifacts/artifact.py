"""What every artifact says of itself, whatever its kind, and how sections are read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from moe_lab.config import canonical_json
from moe_lab.config.spec import Spec
from moe_lab.errors import Damaged
from moe_lab.registry.manifest import Manifest, Parent


class Claim(TypedDict):
    """One held-out figure, in a form that anyone can measure again. Width 0 is the bare trunk."""

    metric: str
    domain: str
    data: str  # digest of the text
    split: str
    rows: int
    seq_len: int
    width: int
    value: str  # as text, because manifests hold no floats
    stated_by: NotRequired[str]  # whose claim it is, where it was not measured here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """The sections that artifacts of all kinds have.

    Attributes:
        run: fingerprint of the run that made it; None where its manifest does not say.
    """

    summary: str = ""
    licence: str | None = None
    parents: tuple[Parent, ...] = ()
    run: str | None = None
    claims: tuple[Claim, ...] = ()

    def parent(self, relation: str) -> Parent | None:
        """The first parent with this relation."""
        return next((parent for parent in self.parents if parent.relation == relation), None)

    def _sections(self, kind: str, **lineage: Any) -> dict[str, Any]:
        """What `fields` of every kind holds; `lineage` adds to that section."""
        parents = [dataclasses.asdict(parent) for parent in self.parents]
        return {
            "kind": kind,
            "summary": self.summary,
            **({} if self.licence is None else {"licence": self.licence}),
            "lineage": {"parents": parents, **({} if self.run is None else {"run": self.run}), **lineage},
            "claims": list(self.claims),
        }


def read_sections(manifest: Manifest) -> dict[str, Any]:
    """The arguments of `Artifact` that a manifest gives; what it does not say is left out."""
    return {
        "summary": manifest.summary,
        "licence": manifest.licence,
        "parents": manifest.parents,
        "run": read_object(manifest, "lineage").get("run"),
        "claims": read_claims(manifest),
    }


def read_claims(manifest: Manifest) -> tuple[Claim, ...]:
    """The claims of an artifact of any kind; they are a list where they were written here, and any JSON elsewhere."""
    claims = manifest.get("claims")
    return tuple(claims) if isinstance(claims, list) else ()


def read_object(section: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object in a section, empty where there is none."""
    value = section.get(key)
    return value if isinstance(value, dict) else {}


def read_domains(manifest: Manifest) -> tuple[Mapping[str, Any], ...]:
    """What `Corpus.describe` said of each text that an artifact learned from."""
    return tuple(read_object(manifest, "data").get("domains", ()))


def require_entry(section: Mapping[str, Any], key: str, label: str) -> Any:
    """An entry that an artifact of this kind must have."""
    if key not in section:
        raise Damaged(f"{label}: its manifest has no {key}, which an artifact of this kind has; publish it again")
    return section[key]


def to_text(settings: Spec | Mapping[str, Any]) -> str:
    """Settings as they stand in a manifest: as JSON text, because a manifest holds no floats."""
    return canonical_json(settings)


def from_text(section: Mapping[str, Any], key: str, label: str) -> dict[str, Any]:
    """The inverse of `to_text`, plain."""
    text = require_entry(section, key, label)
    try:
        settings: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError) as error:
        raise Damaged(f"{label}: {key} in its manifest is no JSON text ({error}); publish it again") from error
    return settings
