"""A registry's files as objects in a bucket of S3, Google Cloud Storage or a server that speaks like them.

All that publishing needs of the service is a write that fails where the key is taken (`If-None-Match: *`,
`ifGenerationMatch=0`). Some services ignore the condition, so the first write of a process tries it out.
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

from moe_lab.errors import Damaged, LabError, Unavailable
from moe_lab.registry.stores.connect import connect, parse_url
from moe_lab.registry.stores.failures import StoreFailure, explain, out_of_range
from moe_lab.registry.stores.protocol import Keys, key_parts

# TensorStore's generation of a key without a value. An empty one would mean "whatever is there".
_NO_VALUE = b"\x02"
_LONGEST_PAUSE = 8.0

_proven: set[str] = set()
_proving = threading.Lock()

T = TypeVar("T")


def patience() -> float:
    """Seconds for which a service that does not answer is asked again."""
    text = os.environ.get("MOE_LAB_STORE_PATIENCE", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise LabError(f"MOE_LAB_STORE_PATIENCE is {text!a}: it must be seconds, from 0 to 86400.")
    return seconds


class ObjectStore:
    """Objects below `s3://bucket/prefix` or `gs://bucket/prefix`; see `Store`.

    Reading needs no permission to write. Nothing is asked of the service before the first operation.
    """

    def __init__(self, url: str) -> None:
        self.bucket = parse_url(url)
        self.patience = patience()

    @cached_property
    def _objects(self) -> Any:
        return connect(self.bucket)

    def put_if_absent(self, key: str, data: bytes | memoryview) -> bool:
        path, content = _path(key), bytes(data)
        self._prove()
        if self._held(path):
            return False
        written = self._patiently(
            lambda: self._objects.write(path, content, if_equal=_NO_VALUE).result().generation, key
        )
        # A taken key may be ours: if the answer was lost, this program or the HTTP library below it has sent the
        # write twice. Whoever else wrote the same bytes just now is told the same, which is true of the content.
        return written != b"" or self._read_back(path, key) == content

    def get(self, key: str, limit: int) -> bytes:
        path = _path(key)
        # The size is not told without the bytes, so one byte beyond the limit is asked for first.
        beyond = self._patiently(lambda: self._byte(path, limit), key)
        if beyond == "missing":
            raise FileNotFoundError(errno.ENOENT, "no such object", self.where(key))
        data = self._read(path, key) if beyond == "none" else b""
        if beyond == "some" or len(data) > limit:
            raise Damaged(f"{self.where(key)} is damaged: it has more than {limit:,} bytes.")
        return data

    def descriptor(self, key: str) -> None:
        return None

    def exists(self, key: str) -> bool:
        return self._held(_path(key))

    def where(self, key: str) -> str:
        return f"{self.bucket.url}/{key}" if key else self.bucket.url

    def list(self, prefix: str) -> Keys:
        folder = "/".join(key_parts(prefix))
        names = self._patiently(lambda: self._names(folder), prefix)
        # Not every service heeds the range, and consoles make empty objects whose names end in a slash.
        return sorted(name for name in names if name.startswith(f"{folder}/") and not name.endswith("/"))

    def remove(self, key: str) -> None:
        """Deletes an object; none with this key is fine."""
        path = _path(key)
        self._patiently(lambda: self._objects.write(path, None).result(), key)

    def _names(self, folder: str) -> Keys:
        import tensorstore

        below = tensorstore.KvStore.KeyRange(f"{folder}/", f"{folder}0")  # 0 comes after /
        names = self._objects.list(below).result()
        if self.bucket.scheme == "gs":
            # TensorStore 0.1.86 takes a refused page (401, 403) for an empty last one. Reading is refused aloud.
            self._objects.read(f"tmp/{secrets.token_hex(16)}").result()
        return [name.decode("utf-8", errors="replace") for name in names]

    def _held(self, path: str) -> bool:
        read = self._patiently(lambda: self._objects.read(path, byte_range=slice(0, 0)).result(), path)
        return bool(read.state == "value")

    def _byte(self, path: str, index: int) -> str:
        """Whether an object has a byte with this index: "some", "none", or "missing" without the object."""
        try:
            read = self._objects.read(path, byte_range=slice(index, index + 1)).result()
        except ValueError as error:
            if out_of_range(error):
                return "none"
            raise
        return "some" if read.state == "value" else "missing"

    def _read(self, path: str, key: str) -> bytes:
        read = self._patiently(lambda: self._objects.read(path).result(), key)
        if read.state != "value":
            raise FileNotFoundError(errno.ENOENT, "no such object", self.where(key))
        data: bytes = read.value
        return data

    def _read_back(self, path: str, key: str) -> bytes:
        """What is there after a write was refused. A bucket that does not exist refuses in the same way."""
        try:
            return self._read(path, key)
        except FileNotFoundError:
            self.list("tmp")
            raise StoreFailure(
                errno.EIO, "a write was refused and left nothing", self.where(key), "check that service"
            ) from None

    def _prove(self) -> None:
        """Refuses a service that would let two publishers overwrite each other; once per process and place."""
        with _proving:
            if self.bucket.identity not in _proven:
                self._patiently(self._try_condition, "")
                _proven.add(self.bucket.identity)

    def _try_condition(self) -> None:
        key = f"tmp/{os.getpid()}-{secrets.token_hex(16)}"
        self._objects.write(key, b"first", if_equal=_NO_VALUE).result()
        try:
            second = self._objects.write(key, b"second", if_equal=_NO_VALUE).result().generation
            held = self._read_back(key, key)
        finally:
            # What stays is garbage: nothing ever reads it.
            with suppress(ValueError):
                self._objects.write(key, None).result()
        if second != b"" or held != b"first":
            raise Unavailable(
                f"{self.bucket.url}: {self.bucket.server} ignores the condition of a write "
                f"({'If-None-Match' if self.bucket.scheme == 's3' else 'ifGenerationMatch'}), so two publishers "
                "could overwrite each other. Nothing was published; use a service or version that keeps it."
            )

    def _patiently(self, work: Callable[[], T], key: str) -> T:
        """Calls `work`, again and again while the service is busy or out of reach and time is left."""
        end, pause = time.monotonic() + self.patience, 0.25
        while True:
            try:
                return work()
            except ValueError as error:
                failure = explain(error, self.where(key), self.bucket.server)
                if not failure.passing or time.monotonic() + pause > end:
                    raise failure from None
            # Everybody who was turned away at once must not come back at once.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)


def _path(key: str) -> str:
    return "/".join(key_parts(key))
