"""An expert module in the registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_lab.artifacts.artifact import Artifact, read_domains, read_object, read_sections, require_entry, to_text
from moe_lab.artifacts.tensor_names import by_layer
from moe_lab.errors import Damaged
from moe_lab.experts.interface import Interface
from moe_lab.experts.kind import ExpertKind
from moe_lab.registry.manifest import Manifest, Parent, TensorRecord

KIND = "module"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModuleArtifact(Artifact):
    """What the manifest of a module says.

    Attributes:
        ladder: widths, in hidden units.
        cost: multiply-adds per token by width, as text.
        domains: what `Corpus.describe` says of each text that it learned from.
        texts: digests of these texts; among what it comes from, since others may learn from the same.
        method: how it was made from its parents, if it was shrunk.
        made_with: what it was made with, by the name of its spec: plain, or the JSON text that stands in a manifest.
    """

    interface: Interface
    ladder: tuple[int, ...]
    cost: Mapping[str, int] = dataclasses.field(default_factory=dict)
    domains: tuple[Mapping[str, Any], ...] = ()
    texts: tuple[str, ...] = ()
    method: Mapping[str, Any] | None = None
    made_with: Mapping[str, Mapping[str, Any] | str] = dataclasses.field(default_factory=dict)

    @property
    def trunk(self) -> Parent:
        """The trunk that it was trained beside, by its lineage."""
        trunk = self.parent("trunk")
        if trunk is None:
            raise Damaged("the manifest's lineage names no trunk; train the module again")
        return trunk

    def fields(self) -> dict[str, Any]:
        """The sections of its manifest."""
        method = {} if self.method is None else {"method": dict(self.method)}
        made_with = {name: each if isinstance(each, str) else to_text(each) for name, each in self.made_with.items()}
        return {
            **self._sections(KIND, data=list(self.texts), **method),
            "interface": self.interface.to_json(),
            "ladder": list(self.ladder),
            "cost": dict(self.cost),
            "data": {"domains": list(self.domains)},
            "config": made_with,
        }

    @staticmethod
    def of(manifest: Manifest, label: str) -> ModuleArtifact:
        """Reads a module's manifest; `label` is what errors call it."""
        lineage = read_object(manifest, "lineage")
        return ModuleArtifact(
            **read_sections(manifest),
            interface=Interface.from_json(manifest["interface"]),
            ladder=tuple(require_entry(manifest, "ladder", label)),
            cost=read_object(manifest, "cost"),
            domains=read_domains(manifest),
            texts=tuple(lineage.get("data", ())),
            method=lineage.get("method"),
            made_with=read_object(manifest, "config"),
        )


def layer_blocks(records: Mapping[str, TensorRecord], kind: ExpertKind) -> dict[int, int]:
    """Blocks per routed layer, read from the tensor records of a module's manifest."""
    return {
        layer: kind.count_blocks({part: record.shape for part, record in parts.items()})
        for layer, parts in by_layer(records).items()
        if kind.parts[0] in parts
    }
