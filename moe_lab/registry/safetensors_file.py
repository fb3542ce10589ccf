"""One safetensors file: written with the same bytes every time, and read only where nothing in it is ambiguous.

The library lets pass what other readers may see otherwise (a key twice, keys it does not know) and headers of 100 MB,
and it reads a file whole. So the header is checked here, and tensors are read one by one, each into memory of its own.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from moe_lab.errors import LabError, Refused, Unavailable, classify, did_you_mean
from moe_lab.registry.chunks import flat_bytes, numpy_dtype
from moe_lab.registry.exact_json import MAX_INTEGER, ManifestProblem, canonical, exact_json
from moe_lab.registry.manifest import ITEM_BYTES, TensorRecord, require_tensor_name
from moe_lab.registry.stores.local import READ_FILE

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

DTYPES = {
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
"""Names of dtypes in the file and here. What packs several numbers into a byte has no counterpart."""
MAX_HEADER_BYTES = 16 << 20
_NAMES = {ours: theirs for theirs, ours in DTYPES.items()}
_RECORD = {"dtype", "shape", "data_offsets"}
_METADATA = "__metadata__"
_OTHER_FORMATS = {
    b"PK": "a zip archive, such as torch.save writes, with a pickle inside",
    b"\x80": "a pickle",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"GGUF": "a GGUF file",
}


def write_safetensors(
    file: BinaryIO,
    records: Mapping[str, TensorRecord],
    read: Callable[[str], Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors one by one, largest elements first, then by name, as the library does, so that each is aligned.

    `read` returns a tensor by its name. Metadata is written sorted: the library's own order is random.
    """
    names = sorted(records, key=lambda name: (-ITEM_BYTES[records[name].dtype], name))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    start = 0
    for name in names:
        record = records[name]
        end = start + record.total_bytes
        header[name] = {
            "dtype": _name_of(name, record.dtype),
            "shape": list(record.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = canonical(header)
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        dtype, shape, data = flat_bytes(name, read(name))
        assert (dtype, shape) == (records[name].dtype, records[name].shape)
        file.write(data)


class TensorPlace(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: str  # as NumPy calls it
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    size: int


def read_safetensors(path: Path) -> dict[str, Array]:
    """All tensors of a file, in memory of their own. Nothing is executed and nothing is guessed.

    Raises:
        LabError: it is another format, damaged, ambiguous, or too large for this machine.
    """
    return {name: read_one(path, name, place) for name, place in read_places(path).items()}


def read_places(path: Path) -> dict[str, TensorPlace]:
    """The header of a file, once it has been found to describe exactly its size; raises as `read_safetensors`."""
    with _as_refusal(path), open_plain(path) as file:
        return _places(file, path)


def read_one(path: Path, name: str, place: TensorPlace) -> Array:
    """One tensor of a file whose header was read before; raises as `read_safetensors`."""
    import numpy as np

    with _as_refusal(path), open_plain(path) as file:
        flat = np.empty(place.size, np.uint8)
        file.seek(place.start)
        if file.readinto(flat.data) != place.size:
            raise ManifestProblem("it changed while it was read")
    dtype = numpy_dtype(place.dtype)
    if dtype == np.bool_ and flat.max(initial=0) > 1:
        with _as_refusal(path):
            raise ManifestProblem(f"tensor {name!a}: a bool is neither 0 nor 1")
    return flat.view(dtype).reshape(place.shape)


@contextmanager
def _as_refusal(path: Path) -> Iterator[None]:
    try:
        yield
    except ManifestProblem as problem:
        raise LabError(f"{path}: this is no safetensors file that can be read: {problem}. Export it again.") from None
    except MemoryError:
        raise Unavailable(f"{path}: too large for the memory of this machine; import it on a larger one.") from None


@contextmanager
def open_plain(path: Path) -> Iterator[BufferedReader]:
    """Opens a plain file; a link, or something that would wait or never end, is `Refused`."""
    try:
        descriptor = os.open(path, READ_FILE)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise not_plain(path) from None
        raise classify(error)(f"{path} cannot be read: {error.strerror}; check the path and its permissions.") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise not_plain(path)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def not_plain(path: Path) -> LabError:
    return Refused(f"{str(path)!a} is a link or not a plain file, and only plain files are read; put a copy there.")


def _name_of(name: str, dtype: str) -> str:
    if dtype not in _NAMES:
        raise Refused(
            f"tensor {name!a} has dtype {dtype}, which safetensors cannot hold.{did_you_mean(dtype, _NAMES)} "
            "Copy the artifact from registry to registry instead."
        )
    return _NAMES[dtype]


def _places(file: BinaryIO, path: Path) -> dict[str, TensorPlace]:
    size, start = os.fstat(file.fileno()).st_size, file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        _refuse_other_formats(start, path)
        limit = f"the file has {size:,} bytes, and of a header at most {MAX_HEADER_BYTES:,} are read"
        raise ManifestProblem(f"its header would have {length:,} bytes; {limit}")
    header = file.read(length)
    if len(header) != length:
        raise ManifestProblem("it changed while it was read")
    places, body = _check_header(header)
    if size != 8 + length + body:
        raise ManifestProblem(f"its header describes {8 + length + body:,} bytes and it has {size:,}")
    return places


def _refuse_other_formats(start: bytes, path: Path) -> None:
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise Refused(
                f"{path} is {what}, whatever its name says, and is never read: such files can run code or be read in "
                "several ways. Convert it to safetensors where you trust it."
            )


def _check_header(header: bytes) -> tuple[dict[str, TensorPlace], int]:
    """Checks that tensors follow one another without gap or overlap; returns also the bytes they take."""
    if not header.startswith(b"{"):
        raise ManifestProblem("its header does not begin with {")
    records, _ = exact_json(header)
    _check_metadata(records.pop(_METADATA, {}))
    places, end = {}, 0
    for name, record in sorted(records.items(), key=lambda item: _begin(*item)):
        begin, end = end, _check_record(name, record, end)
        shape = tuple(record["shape"])
        places[name] = TensorPlace(DTYPES[record["dtype"]], shape, 8 + len(header) + begin, end - begin)
    return places, end


def _check_metadata(metadata: Any) -> None:
    """Notes of other programs; they are checked, since the library reads them, and otherwise ignored."""
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise ManifestProblem(f"{_METADATA} is not an object of texts")


def _begin(name: str, record: Any) -> tuple[int, int, str]:
    """Where a tensor lies, and a check of its form."""
    require_tensor_name(name)
    if not (isinstance(record, dict) and record.keys() == _RECORD):
        raise ManifestProblem(f"tensor {name!a}: a record has exactly {', '.join(sorted(_RECORD))}")
    if not (_are_counts(record["shape"], 32) and _are_counts(record["data_offsets"], 2)):
        raise ManifestProblem(f"tensor {name!a}: shape and data_offsets are lists of integers from 0 up")
    if len(record["data_offsets"]) != 2:
        raise ManifestProblem(f"tensor {name!a}: data_offsets are two integers")
    begin, end = record["data_offsets"]
    return begin, end, name


def _check_record(name: str, record: Mapping[str, Any], begin: int) -> int:
    dtype, (start, end) = record["dtype"], record["data_offsets"]
    if not (isinstance(dtype, str) and dtype in DTYPES):
        raise ManifestProblem(f"tensor {name!a}: unknown dtype.{did_you_mean(str(dtype)[:60], DTYPES)}")
    item = ITEM_BYTES[DTYPES[dtype]]
    if math.prod(size or 1 for size in record["shape"]) * item >= MAX_INTEGER:
        raise ManifestProblem(f"tensor {name!a}: its shape has more numbers than 64 bits can count")
    if start != begin or end - start != math.prod(record["shape"]) * item:
        raise ManifestProblem(
            f"tensor {name!a}: shape {record['shape']} of {dtype} does not fill bytes {start:,} to {end:,}, "
            f"or they do not begin where the tensor before it ends, at {begin:,}"
        )
    return int(end)


def _are_counts(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(item) is int and item >= 0 for item in value)
