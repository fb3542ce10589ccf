"""Tensors whose memory is the registry's own files: nothing is copied, and the processes of a machine share it.

Chunks of one tensor are files of their own. They are mapped at consecutive addresses, which the standard library's
`mmap` cannot ask for; the system call can, where a chunk's size is a multiple of the page's.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any

from moe_lab.files import digest_of
from moe_lab.registry.chunks import numpy_dtype, spread
from moe_lab.registry.manifest import Manifest
from moe_lab.registry.references import blob_key
from moe_lab.registry.stores import Store

if TYPE_CHECKING:
    import numpy as np

SMALLEST = 1 << 20
"""Bytes below which a tensor is read: a mapping of its own would cost more than a copy."""
_FIXED = 0x10  # MAP_FIXED, on Linux and macOS alike
_FAILED = ctypes.c_void_p(-1).value


def map_tensor(store: Store, manifest: Manifest, name: str) -> np.ndarray[Any, Any] | None:
    """A tensor as its chunks lie in the place's files, every byte hashed.

    Writing into it changes this process's copy of a page and no file. None where it cannot be had: it is small, its
    chunks do not end with a page, the place has no files, or one of them is not what the manifest says. Reading the
    tensor tells which.
    """
    record = manifest.record(name)
    size = record.total_bytes
    if size < SMALLEST or (len(record.chunks) > 1 and record.chunk_bytes % mmap.PAGESIZE):
        return None
    memory = _reserve(size)
    if memory is None:
        return None

    def fill(index: int) -> bool:
        begin, length = index * record.chunk_bytes, record.size(index)
        return _place(store, blob_key(record.chunks[index]), memory.ctypes.data + begin, length) and (
            digest_of(memory.data[begin : begin + length]) == record.chunks[index]
        )

    if not all(spread(fill, range(len(record.chunks)), size)):
        return None
    return memory.view(numpy_dtype(record.dtype)).reshape(record.shape)


@functools.cache
def _system() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.argtypes, library.mmap.restype = (pointer, size, number, number, number, ctypes.c_long), pointer
    library.munmap.argtypes = (pointer, size)
    return library


def _map(address: int | None, size: int, flags: int, descriptor: int) -> int | None:
    """Where the system has mapped it; None if it would not. Pages are private: written ones become this process's."""
    rights = mmap.PROT_READ | mmap.PROT_WRITE
    mapped: int | None = _system().mmap(address, size, rights, mmap.MAP_PRIVATE | flags, descriptor, 0)
    return None if mapped == _FAILED else mapped


def _reserve(size: int) -> np.ndarray[Any, Any] | None:
    """So many bytes of addresses, given back with the last array that looks at them."""
    import numpy as np

    address = _map(None, size, mmap.MAP_ANONYMOUS, -1)
    if address is None:
        return None
    region = (ctypes.c_char * size).from_address(address)
    weakref.finalize(region, _system().munmap, address, size).atexit = False
    return np.frombuffer(memoryview(region).cast("B"), np.uint8)


def _place(store: Store, key: str, address: int, size: int) -> bool:
    """Puts a file of exactly this size at an address inside a reserved region."""
    try:
        descriptor = store.descriptor(key)
    except OSError:
        return False
    if descriptor is None:
        return False
    try:
        # Beyond a file's end a mapping has pages that may not be touched.
        return os.fstat(descriptor).st_size == size and _map(address, size, _FIXED, descriptor) is not None
    finally:
        os.close(descriptor)
