"""What lies under the first routed layer, kept on disk: it is the same for every module and every router of a trunk.

A second module on the same text, an outcome table made again, or another evaluation read it instead of running those
layers once more. Off unless asked for: it takes `4 * d_model` bytes of a token in float32.

The key of a file is the digest of the trunk, of the text that goes in (ids, documents, positions), and of the dtype. It
begins with the digest of its own bytes, so what rots is computed again and not believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.errors import LabError
from moe_lab.files import digest_of, explain_full_disk, write_bytes

_FORMAT = b"moe-lab states 1\n"
_DIGEST_BYTES = len(digest_of(b""))


class KeptStates:
    """Hidden states by what they were computed from.

    Args:
        folder: where they are kept; several processes may share it.
        most_bytes: how much of the disk they may take; the ones that were not read for longest make room.

    Attributes:
        read: batches that were found.
        computed: batches that were not.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        if most_bytes < 1:
            raise LabError(f"states of {most_bytes} bytes cannot be kept; give a size above 0, or leave it out")
        self.folder, self.most_bytes = folder, most_bytes
        self.read = self.computed = 0

    def of(self, trunk_digest: str, batch: Any, dtype: Any, compute: Callable[[], jax.Array]) -> jax.Array:
        """The states of a batch, [B, S, D]: from the disk, or computed and put there.

        Args:
            trunk_digest: of the trunk's manifest.
            batch: has `tokens`, `segment_ids` and `positions`, [B, S].
            dtype: of the states.
            compute: runs the layers.
        """
        dtype = jnp.dtype(dtype)
        path = self.folder / f"{_key(trunk_digest, batch, dtype)}.states"
        found = self._find(path, np.asarray(batch.tokens).shape, dtype)
        if found is not None:
            self.read += 1
            return jnp.asarray(found)
        states = compute()
        self.computed += 1
        self._put(path, np.asarray(states).tobytes())
        return states

    def _find(self, path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any] | None:
        try:
            data = path.read_bytes()
            path.touch()  # read just now: what was not makes room first
        except OSError:
            return None
        digest, payload = data[:_DIGEST_BYTES], memoryview(data)[_DIGEST_BYTES:]
        if digest_of(payload).encode() != digest:
            path.unlink(missing_ok=True)
            return None
        return np.frombuffer(payload, dtype).reshape(*shape, -1)

    def _put(self, path: Path, payload: bytes) -> None:
        size = _DIGEST_BYTES + len(payload)
        if size > self.most_bytes:
            return
        with explain_full_disk(self.folder, lambda: "computes them again; with less to keep it needs less space"):
            self._make_room(size)
            write_bytes(path, digest_of(payload).encode() + payload)

    def _make_room(self, size: int) -> None:
        kept = []
        for path in self.folder.glob("*.states"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # another process made room
            kept.append((stat.st_mtime, stat.st_size, path))
        used = sum(entry[1] for entry in kept)
        for _, bytes_, path in sorted(kept):
            if used + size <= self.most_bytes:
                return
            path.unlink(missing_ok=True)
            used -= bytes_


def _key(trunk_digest: str, batch: Any, dtype: Any) -> str:
    digest = hashlib.sha256(_FORMAT + f"{trunk_digest} {dtype.name} ".encode())
    for array in (batch.tokens, batch.segment_ids, batch.positions):
        ids = np.ascontiguousarray(array, np.int32)
        digest.update(f"{ids.shape}".encode() + ids.tobytes())
    return digest.hexdigest()
