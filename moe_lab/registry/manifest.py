"""What an artifact is: canonical JSON that lists every tensor's chunks by digest, and is named by its own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from moe_lab.errors import LabError, did_you_mean
from moe_lab.registry.references import digest_of, is_digest

FORMAT = 1
KINDS = ("module", "trunk", "router")
SECTIONS = ("ladder", "cost", "lineage", "licence", "data", "claims", "summary", "config")
MAX_BYTES = 64 << 20
# Parsed JSON takes up to 30 times its bytes, so the number of values has a limit of its own.
MAX_VALUES = 2 << 20
MAX_CHUNK_BYTES = 1 << 30
MAX_DEPTH = 32
MAX_INTEGER = 2**63

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


class ManifestProblem(ValueError):
    """Why bytes or fields are no manifest; the caller adds whose they are and ends the sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason.removesuffix("."))


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
            raise ManifestProblem(f"tensor {_shown(name)}: a record has exactly {', '.join(cls.__dataclass_fields__)}")
        problem = _record_problem(**value)
        if problem:
            raise ManifestProblem(f"tensor {_shown(name)}: {problem}")
        require_tensor_name(name)
        return cls(**{**value, "shape": tuple(value["shape"]), "chunks": tuple(value["chunks"])})


def require_tensor_name(name: str) -> None:
    if not (1 <= len(name) <= 256 and name.isprintable()):
        raise ManifestProblem(f"tensor {_shown(name)}: a name is 1 to 256 printable characters")


def _record_problem(dtype: Any, shape: Any, chunk_bytes: Any, chunks: Any, blocks: Any) -> str | None:
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"unknown dtype {_shown(dtype)};{did_you_mean(_shown(dtype), ITEM_BYTES)}"
    if not isinstance(shape, list) or len(shape) > 32 or not all(_is_count(size) for size in shape):
        return f"shape {_shown(shape)} is not a list of at most 32 integers from 0 up"
    if not (_is_count(chunk_bytes) and 1 <= chunk_bytes <= MAX_CHUNK_BYTES):
        return f"chunk_bytes {_shown(chunk_bytes)} is not between 1 and {MAX_CHUNK_BYTES:,}"
    total = math.prod(shape) * ITEM_BYTES[dtype]
    expected = -(-total // chunk_bytes)
    if not isinstance(chunks, list) or len(chunks) != expected:
        return f"shape {shape} of {dtype} is {total:,} bytes, so {expected:,} chunks of up to {chunk_bytes:,}"
    # Beside a zero any size would be 0 bytes, but array libraries multiply the others first.
    if math.prod(size or 1 for size in shape) * ITEM_BYTES[dtype] >= MAX_INTEGER:
        return f"shape {shape} of {dtype} has sizes whose product does not fit 64 bits"
    for chunk in chunks:
        if not is_digest(chunk):
            return f"{_shown(chunk)} is not a digest: sha256- and 64 lowercase hex digits"
    if not isinstance(blocks, bool):
        return f"blocks {_shown(blocks)} is neither true nor false"
    if blocks and (not shape or (total and chunk_bytes * shape[0] != total)):
        return "blocks is true, but its chunks are not the indices of axis 0"
    return None


def _shown(value: Any) -> str:
    """Hostile values may be huge or nested past what `repr` can follow."""
    return ascii(value)[:60] if value is None or isinstance(value, str | int) else f"a {type(value).__name__}"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_INTEGER


class Chunk(NamedTuple):
    """One use of a blob: its digest, its bytes, and in words for what an artifact uses it."""

    digest: str
    size: int
    use: str


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

    def record(self, name: str) -> TensorRecord:
        if name not in self.records:
            raise LabError(f"{self.label} has no tensor {name!a}.{did_you_mean(name, self.records)}")
        return self.records[name]

    def chunk(self, name: str, index: int) -> Chunk:
        record = self.records[name]
        return Chunk(record.chunks[index], record.size(index), f"{self.label}: tensor {name!r}: chunk {index}")

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk of every tensor; those with the same bytes come as often as they are used."""
        for name, record in self.records.items():
            yield from (self.chunk(name, index) for index in range(len(record.chunks)))

    def blobs(self) -> dict[str, Chunk]:
        """What is stored, by digest: each with its last use."""
        return {chunk.digest: chunk for chunk in self.chunks()}


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value: UTF-8, keys sorted by code point, no spaces, no floats."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8")


def build(fields: Mapping[str, Any], tensors: Mapping[str, TensorRecord]) -> tuple[Manifest, bytes]:
    """The manifest of these fields and tensors, and its canonical bytes.

    Numbers that are not integers become their shortest exact decimal string.
    """
    for key in fields:
        if key not in ("kind", "interface", *SECTIONS):
            guess = did_you_mean(str(key), ("kind", "interface", *SECTIONS))
            raise ManifestProblem(f"{key!a} is no section of a manifest.{guess}")
    records = {name: tensors[name].as_json() for name in tensors}
    exact = {key: _exact(fields[key], key, 1) for key in fields}
    try:
        data = canonical({"interface": {}, **exact, "format": FORMAT, "tensors": records})
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


def exact_json(data: bytes) -> tuple[Any, bytes]:
    """Decodes JSON of strangers in bounded time and memory: integers of 64 bits, no other number, no key twice.

    Returns:
        The value and its canonical form.
    """
    if len(data) > MAX_BYTES:
        raise ManifestProblem(f"it has {len(data):,} bytes, and at most {MAX_BYTES:,} are read")
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise ManifestProblem(f"it holds more than {MAX_VALUES:,} values")
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_float=_refuse_float,
            parse_constant=_refuse_float,
            parse_int=_integer,
            object_pairs_hook=_unique,
        )
        return value, canonical(value)
    except RecursionError:
        raise ManifestProblem(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeError as error:
        raise ManifestProblem(f"it is not UTF-8 text: {error}") from None
    except json.JSONDecodeError as error:
        raise ManifestProblem(f"it is not JSON: {error}") from None


def _check_sections(value: Any) -> None:
    """Unknown sections are left alone: `format` rises when there is one that a reader must not ignore."""
    if not isinstance(value, dict):
        raise ManifestProblem("it is not a JSON object")
    if type(value.get("format")) is not int or value["format"] != FORMAT:
        raise ManifestProblem(
            f"its format is {_shown(value.get('format'))} and this version reads {FORMAT}; update moe-lab"
        )
    if value.get("kind") not in KINDS:
        raise ManifestProblem(
            f"its kind is {_shown(value.get('kind'))}.{did_you_mean(_shown(value.get('kind')), KINDS)}"
        )
    for section in ("tensors", "interface"):
        if not isinstance(value.get(section), dict):
            raise ManifestProblem(f"its {section} is not a JSON object")
    for section in value.keys() - {"tensors"}:
        _check_depth(value[section], 1)
    _check_parents(value.get("lineage"))


def _check_parents(lineage: Any) -> None:
    parents = lineage.get("parents", []) if isinstance(lineage, dict) else []
    if not isinstance(parents, list):
        raise ManifestProblem("lineage.parents is not a list")
    for parent in parents:
        texts = [parent.get(key) for key in ("ref", "relation")] if isinstance(parent, dict) else [None]
        if not all(isinstance(text, str) for text in texts) or not is_digest(parent.get("digest")):
            raise ManifestProblem("each of lineage.parents has the texts ref and relation, and a digest")


def _check_depth(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ManifestProblem(f"it is nested deeper than {MAX_DEPTH} levels")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _check_depth(child, depth + 1)


def _exact(value: Any, where: str, depth: int) -> Any:
    """The same value without floats; `float.__repr__`, because numpy's own prints its type as well."""
    if depth > MAX_DEPTH:
        raise ManifestProblem(f"{where[:80]} is nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and -MAX_INTEGER <= value < MAX_INTEGER:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__repr__(value)
    if isinstance(value, list | tuple):
        return [_exact(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _exact(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    raise ManifestProblem(
        f"{where} is {ascii(value)[:80]} ({type(value).__name__}): a manifest holds text, true, false, null, "
        "finite numbers, 64-bit integers, lists, and objects whose keys are text"
    )


def _refuse_float(text: str) -> NoReturn:
    raise ManifestProblem(f"it holds the number {text[:40]}: only integers are exact; others are written as text")


def _integer(text: str) -> int:
    # 20 characters hold every 64-bit integer; Python itself is slow, or refuses, on thousands of digits.
    if len(text) > 20 or not -MAX_INTEGER <= int(text) < MAX_INTEGER:
        raise ManifestProblem(f"the integer {text[:40]} does not fit 64 bits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for twice, _ in pairs:
            if twice in seen:
                break
            seen.add(twice)
        raise ManifestProblem(f"the key {_shown(twice)} is there twice")
    return value
