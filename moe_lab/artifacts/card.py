"""The sections on a card, which may be anybody's: read for people as they are, or checked before they are used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from moe_lab.artifacts.artifact import read_object
from moe_lab.config import decode
from moe_lab.config.spec import Spec
from moe_lab.experts.kinds import DEFAULT

CLAIM_COLUMNS = ("width", "metric", "value", "domain", "split", "rows", "stated_by")
PARENT_COLUMNS = ("relation", "ref", "digest")
Row = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SectionsForPeople:
    """What a page shows of the sections of any artifact. Nothing in them is checked, so each may be anything or None.

    Attributes:
        rungs: each width of the ladder with its cost.
        claims: `CLAIM_COLUMNS` of each.
        parents: `PARENT_COLUMNS` of each.
    """

    kind: Any
    summary: Any
    licence: Any
    interface: Any
    rungs: list[Row]
    claims: list[Row]
    parents: list[Row]

    @staticmethod
    def of(sections: Mapping[str, Any]) -> SectionsForPeople:
        """Reads what is there, in whatever form."""
        ladder, cost = sections.get("ladder"), read_object(sections, "cost")
        return SectionsForPeople(
            kind=sections.get("kind"),
            summary=sections.get("summary"),
            licence=sections.get("licence"),
            interface=sections.get("interface"),
            rungs=[(rung, cost.get(str(rung))) for rung in ladder] if isinstance(ladder, list) else [],
            claims=_picked(sections.get("claims"), CLAIM_COLUMNS),
            parents=_picked(read_object(sections, "lineage").get("parents"), PARENT_COLUMNS),
        )


def _picked(entries: Any, keys: tuple[str, ...]) -> list[Row]:
    entries = entries if isinstance(entries, list) else []
    return [tuple(entry.get(key) for key in keys) for entry in entries if isinstance(entry, dict)]


class _Interface(Spec):
    trunk: str
    tokenizer: str
    d_model: int
    block: Annotated[int, Field(gt=0)]
    activation: str
    routed_layers: tuple[int, ...]
    kind: str = DEFAULT


class _Parent(Spec):
    ref: str
    digest: str
    relation: str


class _Lineage(Spec):
    model_config = ConfigDict(extra="allow")
    parents: tuple[_Parent, ...]


class _Claim(Spec):
    metric: str
    domain: str
    data: str
    split: str
    rows: Annotated[int, Field(gt=0, le=1_000_000)]
    seq_len: Annotated[int, Field(gt=0, le=1_000_000)]
    width: Annotated[int, Field(ge=0)]
    value: Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,18})?$")]
    stated_by: str | None = None


class ModuleSections(Spec):
    """What the sections of a module's manifest must look like before anything is computed from them."""

    kind: Literal["module"]
    summary: str = ""
    licence: str
    interface: _Interface
    ladder: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    cost: dict[str, int]
    lineage: _Lineage
    data: dict[str, Any] = {}
    claims: tuple[_Claim, ...]
    config: dict[str, Any] = {}


def require_module_sections(sections: Mapping[str, Any], where: str) -> None:
    """Raises a `LabError` that begins with `where` and says what a module's sections lack or have too much."""
    decode(ModuleSections, sections, where)
