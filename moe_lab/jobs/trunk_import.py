"""Takes a pretrained model of others into the registry as a trunk."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.artifacts.trunk import TOKENIZER_TENSOR, TrunkArtifact
from moe_lab.compose.lockfile import LockedPart
from moe_lab.data.spec import HFTokenizerSpec
from moe_lab.jobs.spec import TrunkImport
from moe_lab.jobs.workspace import Workspace
from moe_lab.training import Progress
from moe_lab.training.processes import first_goes_first
from moe_lab.trunks.checkpoint import Checkpoint, open_checkpoint
from moe_lab.trunks.huggingface import TOKENIZER


@dataclasses.dataclass(frozen=True)
class ImportedTrunk:
    """What an import did; `created` is false where these very bytes had been published before."""

    part: LockedPart
    created: bool
    checkpoint: Checkpoint
    parameters: int


def import_trunk(workspace: Workspace, spec: TrunkImport, base: Path) -> ImportedTrunk:
    """Publishes a checkpoint. Its tensors pass through memory one by one, and keep the dtype that they have.

    `base` is the folder that its paths are relative to.

    Raises:
        LabError: a key, a tensor or a token is not understood; nothing is published then.
    """
    checkpoint = open_checkpoint(
        base / Path(spec.source).expanduser(),
        routed_layers=spec.routed_layers,
        block=spec.block,
        tokenizer=None if spec.tokenizer is None else base / Path(spec.tokenizer).expanduser(),
        eos=spec.eos,
    )
    trunk = TrunkArtifact(
        summary=spec.summary or f"{checkpoint.family.name} decoder, imported",
        licence=spec.licence or checkpoint.licence,
        tokenizer_digest=checkpoint.tokenizer.digest,
        spec=checkpoint.spec,
        tokenizer=HFTokenizerSpec(path=TOKENIZER, eos=spec.eos, start=checkpoint.start),
        origin=checkpoint.origin,
        ends=checkpoint.ends,
        chat_template=checkpoint.chat_template,
    )
    definition = np.frombuffer(checkpoint.tokenizer.definition, np.uint8)
    shown = _Shown(checkpoint.tensors, spec.name, workspace.progress)
    tensors: Mapping[str, Any] = ChainMap({TOKENIZER_TENSOR: definition}, shown)  # type: ignore[arg-type]
    owner, name = spec.name.split("/")
    with first_goes_first(f"published {spec.name}"):
        published = workspace.registry.publish(owner, name, None, trunk.fields(), tensors)
    part = LockedPart(ref=str(published.ref), digest=published.digest)
    parameters = sum(int(np.prod(checkpoint.tensors.shape(name))) for name in checkpoint.tensors)
    return ImportedTrunk(part, published.created, checkpoint, parameters)


class _Shown(Mapping[str, Any]):
    """Tensors that tell how many of them have been read; publishing reads each twice, to hash and to write."""

    def __init__(self, tensors: Mapping[str, Any], name: str, progress: Progress) -> None:
        self._tensors, self._name, self._progress, self._read = tensors, name, progress, 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Any:
        tensor = self._tensors[name]
        self._read += 1
        if self._read % 100 == 0:
            self._progress.note(f"{self._name}: read {self._read} of {2 * len(self)} tensors (each twice)")
        return tensor
