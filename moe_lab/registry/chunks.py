"""Between arrays and stored bytes: little-endian, row-major, cut into pieces that are hashed one by one."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from moe_lab.errors import Damaged, LabError, NotFound, Unavailable, did_you_mean
from moe_lab.files import digest_of
from moe_lab.registry.manifest import ITEM_BYTES, TensorRecord

if TYPE_CHECKING:
    import numpy as np

CHUNK_BYTES = 4 << 20
_WORKERS = 8
_BATCH = 1024

T = TypeVar("T")
R = TypeVar("R")


def flat_bytes(name: str, array: Any) -> tuple[str, tuple[int, ...], memoryview]:
    """dtype name, shape and raw bytes of an array, without a copy where its memory is laid out so already."""
    import numpy as np

    array = np.asarray(array)
    dtype = array.dtype.name
    if dtype not in ITEM_BYTES:
        raise LabError(f"tensor {name!a} has dtype {dtype}, which cannot be stored.{did_you_mean(dtype, ITEM_BYTES)}")
    # Not ascontiguousarray, which makes a 0-d array 1-d. The named dtype turns big-endian input around.
    native = np.asarray(array, dtype=numpy_dtype(dtype), order="C")
    return dtype, native.shape, native.reshape(-1).view(np.uint8).data


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of stored bytes, which are those in memory: both are little-endian."""
    import numpy as np

    if sys.byteorder != "little":
        raise Unavailable("tensors are stored little-endian and this machine is big-endian; use another one.")
    if name.startswith(("bfloat", "float8", "int4", "uint4")):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def cut(data: memoryview, chunk_bytes: int) -> list[memoryview]:
    return [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]


def describe(tensors: Mapping[str, Any], block_tensors: frozenset[str]) -> dict[str, TensorRecord]:
    """The record of every tensor, hashed one after the other; none is kept."""
    unknown = sorted(block_tensors - tensors.keys())
    if unknown:
        raise NotFound(f"block tensor {unknown[0]!a} is not among the tensors.{did_you_mean(unknown[0], tensors)}")
    return {name: _describe_one(name, array, name in block_tensors) for name, array in tensors.items()}


def _describe_one(name: str, array: Any, blocks: bool) -> TensorRecord:
    assert isinstance(name, str), name
    dtype, shape, data = flat_bytes(name, array)
    if blocks and not shape:
        raise LabError(f"tensor {name!a} has no axes, so it cannot be cut into blocks along axis 0.")
    chunk_bytes = max(1, math.prod(shape[1:]) * ITEM_BYTES[dtype]) if blocks else CHUNK_BYTES
    digests = tuple(spread(digest_of, cut(data, chunk_bytes), len(data)))
    return TensorRecord(dtype, shape, chunk_bytes, digests, blocks)


def chunks_of(name: str, array: Any, record: TensorRecord) -> Iterator[tuple[str, memoryview]]:
    """A described tensor's chunks with their digests, as views of the caller's memory.

    Raises:
        Damaged: it is not the tensor that was described.
    """
    pieces = cut(flat_bytes(name, array)[2], record.chunk_bytes)
    digests = tuple(spread(digest_of, pieces, record.total_bytes))
    if digests != record.chunks:
        raise Damaged(f"tensor {name!a} changed while it was published; publish it again.")
    yield from zip(digests, pieces, strict=True)


def spread(work: Callable[[T], R], items: Sequence[T], total_bytes: int) -> Iterator[R]:
    """`map` in order, over threads where there is enough to share; a failure drops what has not begun.

    Hashing and file operations release the interpreter lock, and concurrent fsyncs share one journal commit.
    """
    if len(items) < 4 or total_bytes < (1 << 20):
        yield from map(work, items)
        return
    with ThreadPoolExecutor(_WORKERS) as pool:
        for start in range(0, len(items), _BATCH):
            yield from pool.map(work, items[start : start + _BATCH])
