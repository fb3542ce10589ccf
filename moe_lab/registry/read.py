"""The read path: manifests and tensors, each byte hashed before it is believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moe_lab.errors import Damaged, LabError, Unavailable, classify
from moe_lab.files import digest_of
from moe_lab.registry.chunks import numpy_dtype, spread
from moe_lab.registry.exact_json import MAX_BYTES, ManifestProblem
from moe_lab.registry.manifest import Chunk, Manifest, TensorRecord, parse
from moe_lab.registry.references import blob_key, manifest_key
from moe_lab.registry.stores import Store

if TYPE_CHECKING:
    import numpy as np

_RESTORE = "Restore that file from a copy, or delete it and publish the same artifact again."


def read_manifest(store: Store, digest: str, label: str | None = None) -> Manifest:
    key = manifest_key(digest)
    data = _read(store, key, MAX_BYTES, f"{label or digest}: its manifest")
    if digest_of(data) != digest:
        raise Damaged(f"{label or digest}: its manifest {store.where(key)} is damaged: other bytes. {_RESTORE}")
    try:
        return parse(data, digest, label)
    except ManifestProblem as problem:
        raise Damaged(f"{label or digest}: its manifest {store.where(key)} is not usable: {problem}.") from None


def read_chunk(store: Store, chunk: Chunk) -> bytes:
    """One blob, which must have the digest and the bytes that the manifest says."""
    key = blob_key(chunk.digest)
    data = _read(store, key, chunk.size, chunk.use)
    if digest_of(data) != chunk.digest:
        raise Damaged(f"{chunk.use} {store.where(key)} is damaged: its bytes are not what its name says. {_RESTORE}")
    if len(data) != chunk.size:
        raise Damaged(f"{chunk.use} {store.where(key)} has {len(data):,} bytes and the manifest says {chunk.size:,}.")
    return data


def read_tensor(store: Store, manifest: Manifest, name: str, rows: slice | None) -> np.ndarray[Any, Any]:
    """See `Registry.tensor`."""
    import numpy as np

    record = manifest.record(name)
    dtype = numpy_dtype(record.dtype)
    first, last = _rows(record, rows, f"{manifest.label}: tensor {name!r}")
    begin, end = (0, record.total_bytes) if rows is None else (first * record.row_bytes, last * record.row_bytes)
    try:
        buffer = np.empty(end - begin, np.uint8)
    except MemoryError:
        raise Unavailable(
            f"{manifest.label}: tensor {name!r} needs {end - begin:,} bytes of memory, too many here."
        ) from None
    fill = _filler(store, manifest, name, buffer.data, begin)
    wanted = range(begin // record.chunk_bytes, -(-end // record.chunk_bytes)) if end > begin else range(0)
    for _ in spread(fill, wanted, end - begin):
        pass
    shape = record.shape if rows is None else (last - first, *record.shape[1:])
    return buffer.view(dtype).reshape(shape)


def _filler(store: Store, manifest: Manifest, name: str, buffer: memoryview, begin: int) -> Callable[[int], None]:
    """A function that reads one chunk and copies what `buffer`, which starts at byte `begin`, needs of it."""
    record = manifest.record(name)

    def fill(index: int) -> None:
        data = read_chunk(store, manifest.chunk(name, index))
        start = index * record.chunk_bytes
        low, high = max(start, begin), min(start + len(data), begin + len(buffer))
        buffer[low - begin : high - begin] = data[low - start : high - start]

    return fill


def _rows(record: TensorRecord, rows: slice | None, what: str) -> tuple[int, int]:
    if rows is None:
        return 0, 0
    if not record.shape:
        raise LabError(f"{what} has no axes, so it has no rows; read it whole.")
    start, stop, step = rows.indices(record.shape[0])
    if step != 1:
        raise LabError(f"{what}: rows {rows} has a step; only runs of rows are read.")
    return start, max(start, stop)


def _read(store: Store, key: str, limit: int, what: str) -> bytes:
    try:
        return store.get(key, limit)
    except FileNotFoundError:
        raise Damaged(f"{what} is missing: {store.where(key)}. {_RESTORE.replace('or delete it and', 'or')}") from None
    except OSError as error:
        # The file, or the folder above it that nobody may enter.
        place = error.filename if isinstance(error.filename, str) else store.where(key)
        raise classify(error)(f"{what} cannot be read: {place}: {error.strerror or error}.") from error
    except LabError as error:
        raise type(error)(f"{what}: {error}") from None
