"""What collecting garbage needs of a folder beyond a `Store`: times, and taking files away in two steps."""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass

from moe_lab.registry.stores.local import NEW_FILE, LocalStore
from moe_lab.registry.stores.protocol import key_parts

_ASIDE = re.compile(r"tmp/aside\.[0-9a-f]{16}\.(blobs|manifests)\.([^/]+)")


@dataclass(frozen=True)
class FileStatus:
    """A plain file; `links` counts its names, and `inode` is equal for them."""

    modified_ns: int
    size: int
    links: int
    inode: tuple[int, int]


class SweepFolder(LocalStore):
    """A registry's folder in which files can be set aside: moved into `tmp/`, where nobody looks but this object.

    Attributes:
        aside: where the files are that this object has set aside, by their key.
    """

    aside: dict[str, str]

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store.root)
        self.aside = {}
        self.token = secrets.token_hex(8)

    def get(self, key: str, limit: int) -> bytes:
        """As of any store; a file that was set aside can still be read here."""
        try:
            return super().get(key, limit)
        except FileNotFoundError:
            if key not in self.aside:
                raise
        return super().get(self.aside[key], limit)

    def exists(self, key: str) -> bool:
        return super().exists(key) or key in self.aside

    def clock_ns(self) -> int:
        """Now, as the file system sees it, which on NFS is another machine's opinion than ours."""
        name = f"clock-{os.getpid()}-{secrets.token_hex(8)}"
        with self._folder(["tmp"], create=True) as scratch, self._naming("tmp"):
            descriptor = os.open(name, NEW_FILE, 0o666, dir_fd=scratch)
            try:
                # The time of writing is the server's; that of creating is the client's on some.
                os.write(descriptor, b"\n")
                os.fsync(descriptor)
                return os.fstat(descriptor).st_mtime_ns
            finally:
                os.close(descriptor)
                with suppress(OSError):
                    os.unlink(name, dir_fd=scratch)

    def status(self, key: str) -> FileStatus | None:
        """None where there is no such file; `Damaged` where it is no plain one."""
        *folders, name = key_parts(key)
        try:
            with self._folder(folders) as folder, self._naming(key):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise self._not_plain(key)
        return FileStatus(found.st_mtime_ns, found.st_size, found.st_nlink, (found.st_dev, found.st_ino))

    def set_aside(self, key: str) -> None:
        """Moves a file out of sight. A rename cannot overwrite anything here: the name is new."""
        folder, name = key.split("/")
        place = f"tmp/aside.{self.token}.{folder}.{name}"
        # Noted first: whatever goes wrong, putting back what was never moved does nothing.
        self.aside[key] = place
        with (
            self._folder(["tmp"], create=True) as scratch,
            self._folder([folder]) as source,
            self._naming(key),
            suppress(FileNotFoundError),
        ):
            os.rename(name, place.removeprefix("tmp/"), src_dir_fd=source, dst_dir_fd=scratch)

    def put_back(self, key: str, place: str | None = None) -> None:
        """Gives a file its name again, or drops it where somebody has written the same content meanwhile."""
        folder, name = key.split("/")
        moved = (place or self.aside[key]).removeprefix("tmp/")
        with self._folder(["tmp"]) as scratch, self._folder([folder], create=True) as target, self._naming(key):
            with suppress(FileExistsError, FileNotFoundError):
                os.link(moved, name, src_dir_fd=scratch, dst_dir_fd=target, follow_symlinks=False)
            # Before its other name goes, or a power cut could take both.
            os.fsync(target)
            with suppress(FileNotFoundError):
                os.unlink(moved, dir_fd=scratch)
        self.aside.pop(key, None)

    def drop(self, key: str) -> None:
        """Removes a file that was set aside, for good."""
        self.remove(self.aside[key])
        del self.aside[key]

    def remove(self, key: str) -> None:
        *folders, name = key_parts(key)
        with suppress(FileNotFoundError), self._folder(folders) as folder, self._naming(key):
            os.unlink(name, dir_fd=folder)

    def left_aside(self) -> dict[str, str]:
        """Files that a collection which was killed had set aside: their place in `tmp/` and their key."""
        aside = {place: _ASIDE.fullmatch(place) for place in self.list("tmp")}
        return {place: f"{match[1]}/{match[2]}" for place, match in aside.items() if match}
