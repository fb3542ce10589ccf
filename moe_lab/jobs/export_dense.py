"""One fixed candidate of a composition, or its bare trunk, as a plain decoder that other programs open.

A gated FFN is a sum over its hidden units, so a module beside the trunk's FFN is that FFN with more units. Config files
know one width for all layers: layers without the module get units of zeros, which add nothing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from moe_lab.artifacts.tensor_names import find_ffn_part
from moe_lab.artifacts.trunk import TOKENIZER_TENSOR, TrunkArtifact
from moe_lab.compose.lockfile import Lock, LockedPart, artifact_name
from moe_lab.compose.parts import PublishedModule, find_module, load_own_tokenizer
from moe_lab.data.tokenizers import HFTokenizer
from moe_lab.errors import NotFound, Refused, did_you_mean
from moe_lab.experts.interface import blocks_of
from moe_lab.jobs.workspace import Workspace
from moe_lab.nn.pool import from_blocks
from moe_lab.nn.spec import TrunkSpec
from moe_lab.registry import Registry
from moe_lab.trunks.config_writing import write_config
from moe_lab.trunks.family import Family
from moe_lab.trunks.folder_writing import SHARD_BYTES, Texts, common_dtype, write_decoder
from moe_lab.trunks.gguf_writing import write_gguf

TRUNK = "trunk"
"""The candidate that runs no module."""


@dataclasses.dataclass(frozen=True)
class ExportedDecoder:
    """What was written.

    Attributes:
        family: whose config it has.
        ffn_width: of all layers.
        bytes: of its tensors.
        padded_bytes: of them zeros, in layers that the module does not work in.
    """

    family: str
    dtype: str
    ffn_width: int
    bytes: int
    padded_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fold:
    """The trunk's FFN with the units of a module behind its own.

    Attributes:
        module: none for the bare trunk.
        blocks: of the module, in each layer that it works in.
        width: of the FFN that comes out, in every layer.
        dtype: of what comes out.
    """

    registry: Registry
    part: LockedPart
    trunk: TrunkArtifact
    tokenizer: HFTokenizer
    module: PublishedModule | None
    blocks: int
    width: int
    dtype: str

    @property
    def decoder(self) -> TrunkSpec:
        """What comes out."""
        return self.trunk.spec.model_copy(update={"ffn_width": self.width, "shared_ffn": True})

    @property
    def family(self) -> str | None:
        """Where the trunk came from."""
        return (self.trunk.origin or {}).get("family")

    def texts(self, lock: Lock, candidate: str) -> Texts:
        """What of it is no array."""
        tokenizer = self.tokenizer
        return Texts(
            tokenizer=tokenizer.definition,
            start=None if tokenizer.start_id == tokenizer.eos_id else tokenizer.text_of(tokenizer.start_id),
            end=tokenizer.text_of(tokenizer.eos_id),
            ends=tuple(sorted({tokenizer.eos_id, *self.trunk.ends})),
            chat_template=self.trunk.chat_template,
            readme=_readme(lock, candidate, self),
        )

    def exported(self, family: Family, size: int) -> ExportedDecoder:
        """What is told of it once it is written."""
        item = 2 if self.dtype in ("bfloat16", "float16") else 4
        padded = self.padded_units * 3 * self.trunk.spec.d_model * item
        return ExportedDecoder(family.name, self.dtype, self.width, size, padded)

    def read(self, name: str) -> np.ndarray:
        """A parameter of the decoder that comes out."""
        place = find_ffn_part(name)
        manifest = self.registry.manifest(self.part.digest)
        own = self.registry.tensor(manifest, name) if name in manifest.records else None
        if place is None or place[1:] == ("down", "bias"):
            assert own is not None, name
            return own
        layer, part, leaf = place
        axis = 1 if part != "down" and leaf == "weight" else 0
        pieces = [] if own is None else [own]
        if leaf == "weight" and self.module is not None and layer in self.module.layer_blocks:
            pieces.append(self._units(layer, part))
        shape = [self.width] if leaf == "bias" else [self.trunk.spec.d_model] * 2
        shape[axis] = self.width - sum(piece.shape[axis] for piece in pieces)
        dtype = pieces[0].dtype if pieces else np.float32
        return np.concatenate([*pieces, np.zeros(shape, dtype)], axis=axis)

    def _units(self, layer: int, part: str) -> np.ndarray:
        assert self.module is not None
        count = min(self.blocks, self.module.layer_blocks[layer])
        projections = from_blocks(self.module.read(layer, 0, count))
        return np.asarray(projections[("gate", "up", "down").index(part)])

    @property
    def padded_units(self) -> int:
        """Hidden units of zeros, over all layers."""
        used = 0
        for layer in range(self.trunk.spec.num_layers):
            used += self.trunk.spec.ffn_width if self.trunk.spec.has_ffn(layer) else 0
            if self.module is not None and layer in self.module.layer_blocks:
                used += min(self.blocks, self.module.layer_blocks[layer]) * self.trunk.spec.block
        return self.trunk.spec.num_layers * self.width - used


def export_dense(
    workspace: Workspace, lock: Lock, candidate: str, folder: Path, shard_bytes: int = SHARD_BYTES
) -> ExportedDecoder:
    """Writes a folder as transformers reads it.

    Args:
        workspace: whose registry holds the parts.
        lock: of the composition.
        candidate: `owner/name:width`, or `trunk`.
        folder: to be made.
        shard_bytes: of a file, at most.

    Raises:
        NotFound: no such candidate is composed.
        Refused: it has no such form: the trunk has a switch that no config can say, or no tokenizer of its own.
    """
    fold = _fold(workspace.registry, lock, candidate)
    written = write_config(fold.decoder, fold.family)
    size = write_decoder(folder, written, fold.decoder, fold.dtype, fold.read, fold.texts(lock, candidate), shard_bytes)
    return fold.exported(written.family, size)


def export_gguf(
    workspace: Workspace, lock: Lock, candidate: str, path: Path, dtype: str | None = None
) -> ExportedDecoder:
    """Writes a file as llama.cpp reads it; see `export_dense`.

    Args:
        workspace: whose registry holds the parts.
        lock: of the composition.
        candidate: `owner/name:width`, or `trunk`.
        path: of the file, to be made.
        dtype: of matrices, `float32` or `bfloat16`; what the parts have if left out.
    """
    fold = _fold(workspace.registry, lock, candidate)
    fold = dataclasses.replace(fold, dtype=dtype or fold.dtype)
    family = write_config(fold.decoder, fold.family).family
    texts = fold.texts(lock, candidate)
    size = write_gguf(path, family, f"{lock.name}, {candidate}", fold.decoder, fold.dtype, fold.read, texts)
    return fold.exported(family, size)


def _fold(registry: Registry, lock: Lock, candidate: str) -> _Fold:
    manifest = registry.manifest(lock.trunk.digest)
    trunk = TrunkArtifact.of(manifest, lock.trunk.ref)
    module, width = _find(registry, lock, candidate)
    tokenizer = load_own_tokenizer(registry, manifest, lock.trunk, trunk.tokenizer)
    if not isinstance(tokenizer, HFTokenizer):
        raise Refused(
            f"{lock.trunk.ref} reads bytes, for which there is no tokenizer.json; export one that has its own"
        )
    dtypes = [record.dtype for name, record in manifest.records.items() if name != TOKENIZER_TENSOR]
    dtypes += [] if module is None else [record.dtype for record in module.manifest.records.values()]
    return _Fold(
        registry=registry,
        part=lock.trunk,
        trunk=trunk,
        tokenizer=tokenizer,
        module=module,
        blocks=blocks_of(width, trunk.spec.block),
        width=_width(trunk.spec, width),
        dtype=common_dtype(dtypes),
    )


def _find(registry: Registry, lock: Lock, candidate: str) -> tuple[PublishedModule | None, int]:
    """The module of a candidate, and how wide it is run."""
    if candidate == TRUNK:
        return None, 0
    modules = [find_module(registry, part) for part in lock.modules]
    candidates = {f"{module.name}:{width}": (module, width) for module in modules for width in module.ladder}
    if candidate not in candidates:
        hint = did_you_mean(candidate, [TRUNK, *candidates])
        raise NotFound(f"{lock.name} has no candidate {candidate}; it has {', '.join([TRUNK, *candidates])}.{hint}")
    module, width = candidates[candidate]
    if module.kind.name != "gated_ffn":
        raise Refused(f"{module.part.ref} is of kind {module.kind.name}; only a gated_ffn folds into a trunk's FFN")
    return module, width


def _width(spec: TrunkSpec, width: int) -> int:
    """Hidden units of the widest layer, in whole blocks of the module."""
    units = blocks_of(width, spec.block) * spec.block
    return max((spec.ffn_width if spec.has_ffn(layer) else 0) + units for layer in spec.routed_layers or (0,)) or (
        spec.ffn_width
    )


def _readme(lock: Lock, candidate: str, fold: _Fold) -> str:
    """The card: what it is, whether it is exact, whose it is."""
    trunk, module = fold.trunk, fold.module
    parts = [(lock.trunk, trunk.licence, "the trunk")]
    if module is not None:
        parts.append((module.part, module.artifact.licence, f"its module, {candidate.rpartition(':')[2]} wide"))
    licences = sorted({licence or "unknown" for _, licence, _ in parts})
    rows = "\n".join(
        f"| {part.ref} | {what} | {licence or 'not said'} | `{part.digest}` |" for part, licence, what in parts
    )
    layers = "none" if module is None else ", ".join(map(str, module.layer_blocks))
    return f"""---
license: {licences[0] if len(licences) == 1 else "other"}
tags: [moe-lab]
---
# {artifact_name(lock.trunk.ref)} with {candidate}

One fixed candidate of the composition `{lock.name}`, folded into the trunk's FFN. Exact: it computes what the
composition computes where every token runs this candidate, up to the order of sums. There is no router in it, no price
and no opt-out.

| part | what | licence | digest |
|---|---|---|---|
{rows}

A module works in layers {layers} of {trunk.spec.num_layers}. A config has one FFN width for all of them, {fold.width}
here: {fold.padded_units:,} hidden units, over all layers, are zeros and add nothing.
"""
