"""A local copy of what was read from a registry far away: less traffic, and work without a network."""

from __future__ import annotations

import hashlib
import os
import warnings
from contextlib import suppress
from pathlib import Path

from moe_lab.errors import Damaged, LabError, Refused, Unavailable
from moe_lab.files import digest_of, user_cache
from moe_lab.registry.references import content_digest, is_version
from moe_lab.registry.stores.local import LocalStore
from moe_lab.registry.stores.protocol import Keys, Store

_NAMED = ("refs", "signatures")


class CacheWarning(UserWarning):
    """The cache could not be written; everything is still read, from the registry itself."""


def cache_folder(identity: str, by_default: bool) -> Path | None:
    """Where the registry with this identity is cached, or None for nowhere: `MOE_LAB_CACHE`, else XDG's place."""
    chosen = os.environ.get("MOE_LAB_CACHE", "")
    if chosen == "off" or not (chosen or by_default):
        return None
    try:
        base = Path(chosen).expanduser().absolute() if chosen else user_cache() / "registries"
    except RuntimeError:
        raise LabError(
            "this account has no home to keep a cache in: set MOE_LAB_CACHE to a folder, or to off."
        ) from None
    return base / hashlib.sha256(identity.encode("utf-8")).hexdigest()[:32]


def offline_asked() -> bool:
    """Whether `MOE_LAB_OFFLINE` forbids asking the registry itself."""
    text = os.environ.get("MOE_LAB_OFFLINE", "0")
    if text not in ("", "0", "1"):
        raise LabError(f"MOE_LAB_OFFLINE is {text!a}: it must be 1 for the cache alone, or 0.")
    return text == "1"


class CachedStore:
    """A store that keeps what it reads in a folder; see `Store`.

    Content is hashed each time it comes from the folder, and a damaged file is dropped and read again from
    the registry. References, tombstones and signatures always come from the registry and are remembered as
    last seen. With `offline` everything comes from the folder and nothing can be written. Several processes
    may share a folder, and it may be deleted at any time.
    """

    def __init__(self, remote: Store, folder: Path, offline: bool = False) -> None:
        self.remote = remote
        self.folder = folder
        self.offline = offline
        self._kept = LocalStore(folder)
        self._writable = True

    def put_if_absent(self, key: str, data: bytes | memoryview) -> bool:
        if self.offline:
            raise Refused(f"cannot write to {self.where('')}: MOE_LAB_OFFLINE=1 forbids it; unset it to publish.")
        created = self.remote.put_if_absent(key, data)
        if not created:
            # The writer will now look at what is there, and that must be what the registry has.
            self._drop(key)
        return created

    def get(self, key: str, limit: int) -> bytes:
        digest = content_digest(key)
        if digest is not None or self.offline:
            data = self._cached(key, limit)
            if data is not None and (digest is None or digest_of(data) == digest):
                return data
            if data is not None:
                self._drop(key)
        if self.offline:
            raise self._not_cached(key)
        try:
            data = self.remote.get(key, limit)
        except FileNotFoundError:
            self._drop(key)
            raise
        if digest is None or digest_of(data) == digest:
            self._keep(key, data, replace=digest is None)
        return data

    def descriptor(self, key: str) -> int | None:
        """Of content that the folder has; the rest is for `get` to bring."""
        return self._kept.descriptor(key) if content_digest(key) is not None and self.keeps(key) else None

    def exists(self, key: str) -> bool:
        return self.keeps(key) if self.offline else self.remote.exists(key)

    def where(self, key: str) -> str:
        return self.remote.where(key)

    def list(self, prefix: str) -> Keys:
        if not self.offline:
            keys = self.remote.list(prefix)
            if prefix.split("/")[0] in _NAMED:
                self._remember(prefix, keys)
            return keys
        keys = self._cached_keys(prefix)
        if not keys and prefix.startswith("refs/"):
            raise self._not_cached(prefix)
        return keys

    def keeps(self, key: str) -> bool:
        """Whether the folder has this key; its bytes are not looked at."""
        try:
            return self._kept.exists(key)
        except (OSError, Damaged):
            return False

    def _remember(self, prefix: str, keys: Keys) -> None:
        """Forgets what the registry no longer lists, and fetches tombstones, which offline work must not miss."""
        known = set(self._cached_keys(prefix))
        for key in known.difference(keys):
            self._drop(key)
        for key in keys:
            if key.startswith("refs/") and key not in known and not is_version(key.rpartition("/")[2]):
                with suppress(OSError, Damaged):
                    self.get(key, 64 << 10)

    def _cached(self, key: str, limit: int) -> bytes | None:
        try:
            return self._kept.get(key, limit)
        except OSError:
            return None
        except Damaged:
            self._drop(key)
            return None

    def _cached_keys(self, prefix: str) -> Keys:
        try:
            return self._kept.list(prefix)
        except (OSError, Damaged):
            return []

    def _keep(self, key: str, data: bytes, replace: bool) -> None:
        if not self._writable or (replace and self._cached(key, len(data)) == data):
            return
        if replace:
            self._drop(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._kept.put_if_absent(key, data)
        except (OSError, Damaged, Unavailable) as error:
            # Somebody deletes the folder just now: while making it, Python finds it there and then not.
            if isinstance(error, FileNotFoundError) or (
                isinstance(error, FileExistsError) and not self.folder.is_file()
            ):
                return
            self._writable = False
            reason = error.strerror if isinstance(error, OSError) else error
            warnings.warn(
                f"the cache {self.folder} cannot be written ({reason}), so everything is read from {self.where('')}. "
                "Free space there, or set MOE_LAB_CACHE to another folder or to off.",
                CacheWarning,
                stacklevel=3,
            )

    def _drop(self, key: str) -> None:
        with suppress(OSError):
            Path(self._kept.where(key)).unlink(missing_ok=True)

    def _not_cached(self, key: str) -> Exception:
        """A tombstone or signature that is not there may well not exist; for the rest the reason is said."""
        folder, *parts = key.split("/")
        if folder == "refs" and len(parts) == 2:
            name = "/".join(parts)
        elif folder == "refs" and len(parts) == 3 and is_version(parts[2]):
            cached = [key.rpartition("/")[2] for key in self._cached_keys(f"refs/{parts[0]}/{parts[1]}")]
            versions = ", ".join(version for version in cached if is_version(version))
            name = f"{parts[0]}/{parts[1]}@{parts[2]}{f' (of its versions there is {versions})' if versions else ''}"
        elif folder in ("blobs", "manifests"):
            name = self.where(key)
        else:
            return FileNotFoundError(2, "not in the cache", str(self.folder / key))
        return Unavailable(
            f"{name} is not in the cache {self.folder}, and MOE_LAB_OFFLINE=1 forbids asking {self.where('')}. "
            "With a network, run `moe-lab module fetch REF` first."
        )
