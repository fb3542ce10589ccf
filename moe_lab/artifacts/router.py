"""A router in the registry: one of tokens, which a composition runs, or one of whole questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_lab.artifacts.artifact import (
    Artifact,
    from_text,
    read_domains,
    read_object,
    read_sections,
    require_entry,
    to_text,
)
from moe_lab.registry.manifest import Manifest, Parent

KIND = "router"
QUESTION = "question"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterArtifact(Artifact):
    """What the manifest of a router of tokens says.

    Attributes:
        trunk: digest of the trunk that it reads.
        space: what it chooses from, as `CandidateSpace.to_json` writes it.
        module_digests: the modules whose losses it has seen, by ref; None in the manifests of old versions.
        homes: the domains that it has met, each with the module whose own text it is; None if it takes no hints.
        choice: `type:` of its class, and that class's settings.
        training: how it was trained; None in the manifests of old versions.
        domains: what `Corpus.describe` says of each text that it learned from.
    """

    trunk: str
    space: Mapping[str, Any]
    module_digests: Mapping[str, str] | None = None
    homes: Mapping[str, str] | None = None
    choice: Mapping[str, Any]
    training: Mapping[str, Any] | None = None
    domains: tuple[Mapping[str, Any], ...] = ()

    @property
    def learned_from(self) -> tuple[Parent, ...]:
        """The modules whose losses it has seen. Routers that do not list them have them among their parents."""
        if self.module_digests is None:
            return tuple(parent for parent in self.parents if parent.relation == "module")
        return tuple(Parent(ref, digest, "module") for ref, digest in self.module_digests.items())

    def fields(self) -> dict[str, Any]:
        """The sections of its manifest."""
        interface: dict[str, Any] = {"trunk": self.trunk, "space": dict(self.space)}
        if self.module_digests is not None:
            interface["module_digests"] = dict(self.module_digests)
        if self.homes is not None:
            interface["homes"] = dict(self.homes)
        training = {} if self.training is None else {"training": to_text(self.training)}
        return {
            **self._sections(KIND),
            "interface": interface,
            "config": {"router": to_text(self.choice), **training},
            "data": {"domains": list(self.domains)},
        }

    @staticmethod
    def of(manifest: Manifest, label: str) -> RouterArtifact:
        """Reads the manifest of a router of tokens; `label` is what errors call it."""
        interface, config = manifest["interface"], read_object(manifest, "config")
        return RouterArtifact(
            **read_sections(manifest),
            trunk=require_entry(interface, "trunk", label),
            space=require_entry(interface, "space", label),
            module_digests=interface.get("module_digests"),
            homes=interface.get("homes"),
            choice=from_text(config, "router", label),
            training=from_text(config, "training", label) if "training" in config else None,
            domains=read_domains(manifest),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionRouterArtifact(Artifact):
    """What the manifest of a router of questions says.

    Attributes:
        candidates: what it chooses from: name, size and family of each.
        router: everything about it that is no array, as `QuestionRouter.describe` says it.
        settings: what it was trained with; None in the manifests of old versions that were extended.
        join: what let further candidates join it, or None.
        table: name of the outcome table that it learned from.
        items: how many questions that table has.
        cost_unit: what the costs of its candidates are counted in.
    """

    candidates: tuple[Mapping[str, Any], ...]
    router: Mapping[str, Any]
    settings: Mapping[str, Any] | None
    join: Mapping[str, Any] | None = None
    table: str
    table_digest: str
    items: int
    cost_unit: str

    def fields(self) -> dict[str, Any]:
        """The sections of its manifest."""
        made_with = {"question_router": self.settings, "question_join": self.join}
        return {
            **self._sections(KIND),
            "interface": {
                "unit": QUESTION,
                "candidates": [dict(candidate) for candidate in self.candidates],
                "router": {**self.router, "features": to_text(self.router["features"])},
            },
            "config": {name: to_text(settings) for name, settings in made_with.items() if settings is not None},
            "data": {
                "table": self.table,
                "digest": self.table_digest,
                "items": self.items,
                "cost_unit": self.cost_unit,
            },
        }

    @staticmethod
    def of(manifest: Manifest, label: str) -> QuestionRouterArtifact:
        """Reads the manifest of a router of questions; `label` is what errors call it."""
        interface, config, data = manifest["interface"], read_object(manifest, "config"), read_object(manifest, "data")
        router = require_entry(interface, "router", label)
        return QuestionRouterArtifact(
            **read_sections(manifest),
            candidates=tuple(require_entry(interface, "candidates", label)),
            router={**router, "features": from_text(router, "features", label)},
            settings=from_text(config, "question_router", label) if "question_router" in config else None,
            join=from_text(config, "question_join", label) if "question_join" in config else None,
            table=require_entry(data, "table", label),
            table_digest=require_entry(data, "digest", label),
            items=require_entry(data, "items", label),
            cost_unit=require_entry(data, "cost_unit", label),
        )


def read_router(manifest: Manifest, label: str) -> RouterArtifact | QuestionRouterArtifact:
    """Reads the manifest of a router of either sort; `label` is what errors call it.

    A router of questions says so. Those of old versions do not, and are known by the candidates in their interface.
    """
    interface = manifest["interface"]
    of_questions = interface["unit"] == QUESTION if "unit" in interface else "candidates" in interface
    return (QuestionRouterArtifact if of_questions else RouterArtifact).of(manifest, label)
