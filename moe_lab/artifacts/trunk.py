"""A trunk in the registry."""

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
from moe_lab.config import decode
from moe_lab.config.spec import Spec
from moe_lab.data.spec import TokenizerSpec
from moe_lab.nn.spec import TrunkSpec
from moe_lab.registry.manifest import Manifest

KIND = "trunk"
TOKENIZER_TENSOR = "tokenizer.json"
"""The definition of a tokenizer that is no part of this program, among the trunk's tensors."""


class _Tokenizer(Spec):
    tokenizer: TokenizerSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrunkArtifact(Artifact):
    """What the manifest of a trunk says.

    Attributes:
        tokenizer_digest: of the tokenizer itself; its `tokenizer` says how it was made.
        domains: what `Corpus.describe` says of each text that it learned from.
        origin: of an imported one: the format and family that it was read from, and digests of its files.
        ends: ids after which it stops writing, beside the tokenizer's end of a document.
        chat_template: in jinja2's language, how a conversation is written down for it.
    """

    tokenizer_digest: str
    spec: TrunkSpec
    tokenizer: TokenizerSpec
    domains: tuple[Mapping[str, Any], ...] = ()
    origin: Mapping[str, str] | None = None
    ends: tuple[int, ...] = ()
    chat_template: str | None = None

    def fields(self) -> dict[str, Any]:
        """The sections of its manifest."""
        origin = {} if self.origin is None else {"origin": dict(self.origin)}
        written: dict[str, Any] = {"ends": list(self.ends)} if self.ends else {}
        if self.chat_template is not None:
            written["chat_template"] = self.chat_template
        return {
            **self._sections(KIND, **origin),
            "interface": {"tokenizer": self.tokenizer_digest},
            "config": {"trunk": to_text(self.spec), "tokenizer": to_text(self.tokenizer), **written},
            "data": {"domains": list(self.domains)},
        }

    @staticmethod
    def of(manifest: Manifest, label: str) -> TrunkArtifact:
        """Reads a trunk's manifest; `label` is what errors call it."""
        config = read_object(manifest, "config")
        tokenizer = decode(_Tokenizer, {"tokenizer": from_text(config, "tokenizer", label)}, label).tokenizer
        return TrunkArtifact(
            **read_sections(manifest),
            tokenizer_digest=require_entry(manifest["interface"], "tokenizer", label),
            spec=decode(TrunkSpec, from_text(config, "trunk", label), label),
            tokenizer=tokenizer,
            domains=read_domains(manifest),
            origin=read_object(manifest, "lineage").get("origin"),
            ends=tuple(config.get("ends", ())),
            chat_template=config.get("chat_template"),
        )
