"""What two artifacts have in common, told from their manifests alone: no tensor is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from moe_lab.registry.manifest import Manifest, TensorRecord


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT: Final = _Absent()
"""Stands for a value that one side does not have; `None` is JSON's null."""


@dataclass(frozen=True)
class SectionChange:
    """One value that differs; `path` is such as `claims.heldout[2].bits`."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True)
class TensorChange:
    """One tensor that differs.

    Attributes:
        change: "added", "removed", "reshaped" (another shape, dtype or cut) or "changed" (other values).
        chunks: how many chunks of the new one (of the old one, if removed) are not at their place in the other.
        bytes: the size of those chunks.
    """

    name: str
    change: str
    old: TensorRecord | None
    new: TensorRecord | None
    chunks: int
    bytes: int

    @property
    def of_chunks(self) -> int:
        record = self.new or self.old
        assert record is not None
        return len(record.chunks)


@dataclass(frozen=True)
class ArtifactDiff:
    """Everything in which the second artifact differs from the first.

    Attributes:
        equal_tensors: how many tensors are the same.
        shared_bytes: stored bytes that both use; `old_bytes` and `new_bytes` are what each of them uses.
    """

    sections: tuple[SectionChange, ...]
    tensors: tuple[TensorChange, ...]
    equal_tensors: int
    shared_bytes: int
    old_bytes: int
    new_bytes: int

    @property
    def same(self) -> bool:
        return not self.sections and not self.tensors


def diff(old: Manifest, new: Manifest) -> ArtifactDiff:
    """See `Registry.diff`."""
    names = sorted(old.records.keys() | new.records.keys())
    tensors = [_tensor(name, old.records.get(name), new.records.get(name)) for name in names]
    sections = sorted((old.keys() | new.keys()) - {"tensors"})
    changes = [change for key in sections for change in _values(key, old.get(key, ABSENT), new.get(key, ABSENT))]
    before, after = ({digest: chunk.size for digest, chunk in side.blobs().items()} for side in (old, new))
    return ArtifactDiff(
        sections=tuple(changes),
        tensors=tuple(change for change in tensors if change is not None),
        equal_tensors=tensors.count(None),
        shared_bytes=sum(size for blob, size in before.items() if blob in after),
        old_bytes=sum(before.values()),
        new_bytes=sum(after.values()),
    )


def _values(path: str, old: Any, new: Any) -> Iterator[SectionChange]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _values(f"{path}.{key}", old.get(key, ABSENT), new.get(key, ABSENT))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            sides = [side[index] if index < len(side) else ABSENT for side in (old, new)]
            yield from _values(f"{path}[{index}]", *sides)
    # Python holds True equal to 1, JSON does not.
    elif type(old) is not type(new) or old != new:
        yield SectionChange(path, old, new)


def _tensor(name: str, old: TensorRecord | None, new: TensorRecord | None) -> TensorChange | None:
    if old == new:
        return None
    if old is None or new is None:
        only = new or old
        assert only is not None
        change = "removed" if new is None else "added"
        return TensorChange(name, change, old, new, len(only.chunks), only.total_bytes)
    alike = (old.dtype, old.shape, old.chunk_bytes, old.blocks) == (new.dtype, new.shape, new.chunk_bytes, new.blocks)
    places = [place for place, chunk in enumerate(new.chunks) if old.chunks[place : place + 1] != (chunk,)]
    size = sum(new.size(place) for place in places)
    return TensorChange(name, "changed" if alike else "reshaped", old, new, len(places), size)
