"""A GGUF file: its metadata and where its tensors lie, checked before anything is believed.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package knows the quantised layouts
and undoes them; its reader trusts lengths of strangers, so headers are read here.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from moe_lab.errors import Damaged, Refused, Unavailable, printable
from moe_lab.registry.safetensors_file import open_plain
from moe_lab.trunks.tensor_table import Stored

MAX_NAME_BYTES = 1024
MAX_TEXT_BYTES = 1 << 20
MAX_DIMENSIONS = 4
MAX_ITEMS = 4 << 20
MAX_ENTRIES = 1 << 16
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_PLAIN = {0: "float32", 1: "float16", 30: "bfloat16"}  # ggml types that are dtypes of their own


class _Place(NamedTuple):
    kind: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # as of an array: rows first
    start: int
    size: int


class GGUFFile:
    """A file whose header was found to describe it exactly.

    Attributes:
        label: how errors call it.
        metadata: its keys and values.
        stored: its tensors by name, as they come out of `read`: quantised ones as float32.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.label = path.resolve(), str(path)
        with open_plain(self.path) as file:
            try:
                self.metadata, self._places = _Header(file).read()
            except _Problem as problem:
                raise Damaged(
                    f"{path}: this is no GGUF file that can be read: {problem}. Take it anew from where it came from."
                ) from None
        self.stored: Mapping[str, Stored] = {
            name: Stored(_PLAIN.get(int(place.kind), "float32"), place.shape) for name, place in self._places.items()
        }

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor."""
        place = self._places[name]
        try:
            with open_plain(self.path) as file:
                file.seek(place.start)
                data = np.frombuffer(bytearray(file.read(place.size)), np.uint8)
        except MemoryError:
            raise Unavailable(f"{self.label}: tensor {name} is too large for the memory of this machine.") from None
        if len(data) != place.size:
            raise Damaged(f"{self.label} changed while it was read; run the same command again.")
        return self._undo(name, place, data)

    def digest(self) -> str:
        """Of the whole file, as `files.digest_of` writes it."""
        with open_plain(self.path) as file:
            return f"sha256-{hashlib.file_digest(file, 'sha256').hexdigest()}"

    def _undo(self, name: str, place: _Place, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        import ml_dtypes
        from gguf import dequantize

        match int(place.kind):
            case 0:
                return data.view(np.float32).reshape(place.shape)
            case 1:
                return data.view(np.float16).reshape(place.shape)
            case 30:
                return data.view(ml_dtypes.bfloat16).reshape(place.shape)
        try:
            flat = dequantize(data.reshape(*place.shape[:-1], -1), place.kind)
        except NotImplementedError:
            raise Refused(
                f"{self.label}: tensor {name} is quantised as {place.kind.name}, which the gguf package cannot undo; "
                "take a file of another quantisation."
            ) from None
        return flat.reshape(place.shape)


class _Problem(Exception):
    """Why bytes are no GGUF file."""


class _Header:
    """Reads a header front to back; every length is held against what is left of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.at = file, os.fstat(file.fileno()).st_size, 0

    def read(self) -> tuple[dict[str, Any], dict[str, _Place]]:
        if self._bytes(4) != b"GGUF":
            raise _Problem("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise _Problem(f"its version is {version}, and 2 and 3 are read")
        tensors, keys = self._number("Q"), self._number("Q")
        if max(tensors, keys) > MAX_ENTRIES:
            raise _Problem(f"it claims {tensors:,} tensors and {keys:,} keys, more than {MAX_ENTRIES:,}")
        metadata = self._metadata(keys)
        return metadata, self._places(tensors, metadata)

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._text(MAX_NAME_BYTES)
            if key in metadata:
                raise _Problem(f"the key {key} is there twice")
            metadata[key] = self._value(self._number("I"), key)
        return metadata

    def _places(self, count: int, metadata: Mapping[str, Any]) -> dict[str, _Place]:
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
            raise _Problem("general.alignment is no number of bytes")
        found = [self._tensor() for _ in range(count)]
        data = -(-self.at // alignment) * alignment
        places: dict[str, _Place] = {}
        end = 0
        for name, place in sorted(found, key=lambda item: item[1].start):
            if name in places:
                raise _Problem(f"tensor {name} is there twice")
            if place.start % alignment or place.start < end:
                raise _Problem(f"tensor {name} overlaps another, or does not lie at a multiple of {alignment} bytes")
            end = place.start + place.size
            places[name] = place._replace(start=data + place.start)
        if data + end > self.size:
            raise _Problem(f"its tensors reach to byte {data + end:,} and it has {self.size:,}")
        return places

    def _tensor(self) -> tuple[str, _Place]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._text(MAX_NAME_BYTES)
        dimensions = self._number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise _Problem(f"tensor {name} has {dimensions} axes")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        kind, start = self._number("I"), self._number("Q")
        try:
            quantisation = GGMLQuantizationType(kind)
        except ValueError:
            raise _Problem(f"tensor {name} has the unknown type {kind}") from None
        numbers, size = GGML_QUANT_SIZES[quantisation]
        if math.prod(size or 1 for size in shape) >= 1 << 48 or start >= 1 << 62:
            raise _Problem(f"tensor {name} is larger than any file")
        if 0 in shape or shape[-1] % numbers:
            raise _Problem(f"tensor {name} has rows of {shape[-1]}, which {quantisation.name} cannot hold")
        return name, _Place(quantisation, shape, start, math.prod(shape) // numbers * size)

    def _value(self, kind: int, key: str) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text(MAX_TEXT_BYTES)
        if kind != _LIST:
            raise _Problem(f"{key} is of the unknown type {kind}")
        inner, count = self._number("I"), self._number("Q")
        if count > MAX_ITEMS:
            raise _Problem(f"{key} claims {count:,} values")
        if inner in _NUMBERS:
            return list(
                struct.unpack(f"<{count}{_NUMBERS[inner]}", self._bytes(count * struct.calcsize(_NUMBERS[inner])))
            )
        if inner != _TEXT:
            raise _Problem(f"{key} is a list of the unknown type {inner}")
        return [self._text(MAX_TEXT_BYTES) for _ in range(count)]

    def _text(self, most: int) -> str:
        length = self._number("Q")
        if length > most:
            raise _Problem(f"a text claims {length:,} bytes at byte {self.at:,}")
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError:
            raise _Problem(f"a text before byte {self.at:,} is not UTF-8") from None

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))[0]

    def _bytes(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise _Problem(f"it ends at byte {self.size:,}, inside its header")
        data = self.file.read(count)
        if len(data) != count:
            raise _Problem("it changed while it was read")
        self.at += count
        return data


def is_gguf(path: Path) -> bool:
    """Whether a file begins as one."""
    with open_plain(path.resolve()) as file:
        return file.read(4) == b"GGUF"


def require_text(metadata: Mapping[str, Any], key: str, label: str) -> str:
    """A text that every file has."""
    value = metadata.get(key)
    if not isinstance(value, str):
        raise Refused(f"{label} has no text {printable(key)}; take a file that was converted anew.")
    return value
