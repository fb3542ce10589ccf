"""What an artifact is: canonical JSON that lists every tensor's chunks by digest, and is named by its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from moe_lab.errors import NotFound, did_you_mean
from moe_lab.files import digest_of
from moe_lab.registry.exact_json import MAX_INTEGER, ManifestProblem, canonical, check_depth, exact, exact_json, shown
from moe_lab.registry.references import is_digest

FORMAT = 1
KINDS = ("module", "trunk", "router")
SECTIONS = ("ladder", "cost", "lineage", "licence", "data", "claims", "summary", "config")
MAX_CHUNK_BYTES = 1 << 30

_BY_SIZE = {
    1: "bool int8 uint8 int4 uint4 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz "
    "float8_e5m2 float8_e5m2fnuz float8_e8m0fnu",
    2: "int16 uint16 float16 bfloat16",
    4: "int32 uint32 float32",
    8: "int64 uint64 float64 complex64",
    16: "complex128",
}
ITEM_BYTES = {name: size for size, names in _BY_SIZE.items() for name in names.split()}
"""Bytes per stored element. 4-bit integers take a byte each, as they do in memory."""


@dataclass(frozen=True)
class TensorRecord:
    """Where one tensor's bytes are: row-major, little-endian, cut at multiples of `chunk_bytes`.

    Attributes:
        blocks: axis 0 counts blocks of hidden units, one chunk each, so that a narrower width is a prefix.
        chunks: digests in order.
    """

    dtype: str
    shape: tuple[int, ...]
    chunk_bytes: int
    chunks: tuple[str, ...]
    blocks: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of axis 0."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def total_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def size(self, chunk: int) -> int:
        """Bytes of the chunk with this index."""
        return min(self.chunk_bytes, self.total_bytes - chunk * self.chunk_bytes)

    def as_json(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "chunk_bytes": self.chunk_bytes,
            "chunks": list(self.chunks),
            "blocks": self.blocks,
        }

    @classmethod
    def from_json(cls, name: str, value: Any) -> TensorRecord:
        """Checks one record of a manifest, so that no later arithmetic can go wrong."""
        if not (isinstance(value, dict) and value.keys() == cls.__dataclass_fields__.keys()):
            raise ManifestProblem(f"tensor {shown(name)}: a record has exactly {', '.join(cls.__dataclass_fields__)}")
        problem = _record_problem(**value)
        if problem:
            raise ManifestProblem(f"tensor {shown(name)}: {problem}")
        require_tensor_name(name)
        return cls(**{**value, "shape": tuple(value["shape"]), "chunks": tuple(value["chunks"])})


def require_tensor_name(name: str) -> None:
    if not (1 <= len(name) <= 256 and name.isprintable()):
        raise ManifestProblem(f"tensor {shown(name)}: a name is 1 to 256 printable characters")


def _record_problem(dtype: Any, shape: Any, chunk_bytes: Any, chunks: Any, blocks: Any) -> str | None:
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"unknown dtype {shown(dtype)};{did_you_mean(shown(dtype), ITEM_BYTES)}"
    if not isinstance(shape, list) or len(shape) > 32 or not all(_is_count(size) for size in shape):
        return f"shape {shown(shape)} is not a list of at most 32 integers from 0 up"
    if not (_is_count(chunk_bytes) and 1 <= chunk_bytes <= MAX_CHUNK_BYTES):
        return f"chunk_bytes {shown(chunk_bytes)} is not between 1 and {MAX_CHUNK_BYTES:,}"
    total = math.prod(shape) * ITEM_BYTES[dtype]
    expected = -(-total // chunk_bytes)
    if not isinstance(chunks, list) or len(chunks) != expected:
        return f"shape {shape} of {dtype} is {total:,} bytes, so {expected:,} chunks of up to {chunk_bytes:,}"
    # Beside a zero any size would be 0 bytes, but array libraries multiply the others first.
    if math.prod(size or 1 for size in shape) * ITEM_BYTES[dtype] >= MAX_INTEGER:
        return f"shape {shape} of {dtype} has sizes whose product does not fit 64 bits"
    for chunk in chunks:
        if not is_digest(chunk):
            return f"{shown(chunk)} is not a digest: sha256- and 64 lowercase hex digits"
    if not isinstance(blocks, bool):
        return f"blocks {shown(blocks)} is neither true nor false"
    if blocks and (not shape or (total and chunk_bytes * shape[0] != total)):
        return "blocks is true, but its chunks are not the indices of axis 0"
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_INTEGER


class Chunk(NamedTuple):
    """One use of a blob: its digest, its bytes, and in words for what an artifact uses it."""

    digest: str
    size: int
    use: str


@dataclass(frozen=True)
class Parent:
    """What an artifact was made from or beside, as its lineage names it; the digest is what counts."""

    ref: str
    digest: str
    relation: str


class Manifest(dict[str, Any]):
    """A manifest's JSON as a dict, already checked.

    Attributes:
        digest: of its canonical bytes.
        size: bytes of its canonical form.
        label: how error messages call the artifact; the reference it was reached by, or the digest.
        records: the typed form of its `tensors`.
    """

    def __init__(self, value: Mapping[str, Any], digest: str, size: int, label: str | None = None) -> None:
        super().__init__(value)
        self.digest = digest
        self.size = size
        self.label = label or digest
        self.records = {name: TensorRecord.from_json(name, record) for name, record in self["tensors"].items()}

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        kind: str = self["kind"]
        return kind

    @property
    def summary(self) -> str:
        """What it is in a line; "" where it does not say."""
        summary = self.get("summary")
        return summary if isinstance(summary, str) else ""

    @property
    def licence(self) -> str | None:
        return self.get("licence")

    @property
    def ladder(self) -> list[Any]:
        """The widths that it can be cut to; none where it has no ladder."""
        ladder = self.get("ladder")
        return ladder if isinstance(ladder, list) else []

    @property
    def parents(self) -> tuple[Parent, ...]:
        section = self.get("lineage")
        parents = section.get("parents", []) if isinstance(section, dict) else []
        return tuple(Parent(parent["ref"], parent["digest"], parent["relation"]) for parent in parents)

    @property
    def sections(self) -> dict[str, Any]:
        """All that it says but for its tensors: what is published again when it is copied."""
        return {key: value for key, value in self.items() if key not in ("format", "tensors")}

    def record(self, name: str) -> TensorRecord:
        if name not in self.records:
            raise NotFound(f"{self.label} has no tensor {name!a}.{did_you_mean(name, self.records)}")
        return self.records[name]

    def chunk(self, name: str, index: int) -> Chunk:
        record = self.records[name]
        return Chunk(record.chunks[index], record.size(index), f"{self.label}: tensor {name!r}: chunk {index}")

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk of every tensor; those with the same bytes come as often as they are used."""
        for name, record in self.records.items():
            yield from (self.chunk(name, index) for index in range(len(record.chunks)))

    def count_numbers(self) -> int:
        """Numbers in all tensors, the bytes of a tokenizer among them."""
        return sum(math.prod(record.shape) for record in self.records.values())

    def blobs(self) -> dict[str, Chunk]:
        """What is stored, by digest: each with its last use."""
        return {chunk.digest: chunk for chunk in self.chunks()}


def build(fields: Mapping[str, Any], tensors: Mapping[str, TensorRecord]) -> tuple[Manifest, bytes]:
    """The manifest of these fields and tensors, and its canonical bytes.

    Numbers that are not integers become their shortest exact decimal string.
    """
    for key in fields:
        if key not in ("kind", "interface", *SECTIONS):
            guess = did_you_mean(str(key), ("kind", "interface", *SECTIONS))
            raise ManifestProblem(f"{key!a} is no section of a manifest.{guess}")
    records = {name: tensors[name].as_json() for name in tensors}
    sections = {key: exact(fields[key], key, 1) for key in fields}
    try:
        data = canonical({"interface": {}, **sections, "format": FORMAT, "tensors": records})
    except UnicodeEncodeError:
        raise ManifestProblem("a text holds half of a surrogate pair, which UTF-8 cannot write") from None
    return parse(data, digest_of(data)), data


def parse(data: bytes, digest: str, label: str | None = None) -> Manifest:
    """Decodes and checks canonical bytes. Everything that a second reader could read otherwise is refused."""
    value, spelled = exact_json(data)
    if spelled != data:
        raise ManifestProblem("it is not canonical JSON: keys sorted, no spaces, no escapes without need")
    _check_sections(value)
    return Manifest(value, digest, len(data), label)


def _check_sections(value: Any) -> None:
    """Unknown sections are left alone: `format` rises when there is one that a reader must not ignore."""
    if not isinstance(value, dict):
        raise ManifestProblem("it is not a JSON object")
    if type(value.get("format")) is not int or value["format"] != FORMAT:
        raise ManifestProblem(
            f"its format is {shown(value.get('format'))} and this version reads {FORMAT}; update moe-lab"
        )
    if value.get("kind") not in KINDS:
        raise ManifestProblem(f"its kind is {shown(value.get('kind'))}.{did_you_mean(shown(value.get('kind')), KINDS)}")
    for section in ("tensors", "interface"):
        if not isinstance(value.get(section), dict):
            raise ManifestProblem(f"its {section} is not a JSON object")
    for section in value.keys() - {"tensors"}:
        check_depth(value[section], 1)
    _check_parents(value.get("lineage"))


def _check_parents(lineage: Any) -> None:
    parents = lineage.get("parents", []) if isinstance(lineage, dict) else []
    if not isinstance(parents, list):
        raise ManifestProblem("lineage.parents is not a list")
    for parent in parents:
        texts = [parent.get(key) for key in ("ref", "relation")] if isinstance(parent, dict) else [None]
        if not all(isinstance(text, str) for text in texts) or not is_digest(parent.get("digest")):
            raise ManifestProblem("each of lineage.parents has the texts ref and relation, and a digest")
