"""A registry's files in a folder, on a local disk or on NFS. pathlib has neither `dir_fd` nor `O_NOFOLLOW`."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moe_lab.errors import Damaged, LabError, NotFound, Unavailable, classify
from moe_lab.registry.stores.protocol import Keys, key_parts

READ_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that somebody put in place of a file must not wait for its writer.
READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Another user's file, or a registry that is mounted read-only: its time stays, and publishing looks again at the end.
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)


def open_folder(root: Path, create: bool) -> LocalStore:
    """Opens the folder of a registry, making it first if asked."""
    try:
        if create:
            _make_folders(root)
        os.close(os.open(root, READ_FOLDER))
    except FileNotFoundError:
        raise NotFound(f"there is no registry at {root}: publish a module to make one, or name its folder.") from None
    except (FileExistsError, NotADirectoryError):
        raise LabError(f"registry {root}: a file is in the way; name a folder.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise classify(error)(
            f"registry {str(root)!r} cannot be opened: {reason}; check the path and its permissions."
        ) from None
    return LocalStore(root)


def _make_folders(root: Path) -> None:
    """Makes the root and its parents, each safe in the folder above it."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, READ_FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalStore:
    """A folder on a local disk or on NFS.

    Every folder is entered through its parent's descriptor and without following links, so no key leads out
    of the root, whatever somebody else puts there meanwhile. Modes come from the umask: teams can share it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._durable: set[tuple[str, ...]] = set()

    def put_if_absent(self, key: str, data: bytes | memoryview) -> bool:
        *folders, name = key_parts(key)
        with self._folder(folders, create=True) as folder, self._naming(key):
            created = False
            while not created and not _touch(name, folder):
                with self._folder(["tmp"], create=True) as scratch:
                    created = self._link_new(scratch, folder, name, data)
            # Also after losing: what is written next may point to this entry and must not outlive it.
            os.fsync(folder)
        return created

    def get(self, key: str, limit: int) -> bytes:
        descriptor = self.descriptor(key)
        try:
            size = os.fstat(descriptor).st_size
            if size > limit:
                raise Damaged(f"{self.where(key)} is damaged: it has {size:,} bytes, more than {limit:,}.")
            with self._naming(key), os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(limit)
        finally:
            os.close(descriptor)

    def descriptor(self, key: str) -> int:
        *folders, name = key_parts(key)
        with self._folder(folders) as folder, self._naming(key):
            try:
                descriptor = os.open(name, READ_FILE, dir_fd=folder)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    raise self._not_plain(key) from None
                raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._not_plain(key)
        return descriptor

    def exists(self, key: str) -> bool:
        *folders, name = key_parts(key)
        try:
            with self._folder(folders) as folder, self._naming(key):
                return _present(name, folder)
        except FileNotFoundError:
            return False

    def where(self, key: str) -> str:
        return str(self.root / key)

    def list(self, prefix: str) -> Keys:
        keys, pending = [], [key_parts(prefix)]
        while pending:
            parts = pending.pop()
            with (
                suppress(FileNotFoundError),
                self._folder(parts) as folder,
                self._naming("/".join(parts)),
                os.scandir(folder) as entries,
            ):
                for entry in entries:
                    path = [*parts, entry.name]
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
                    else:
                        keys.append("/".join(path))
        return sorted(keys)

    @contextmanager
    def _folder(self, parts: Keys, create: bool = False) -> Iterator[int]:
        """Descriptor of a folder below the root. The root itself may be a link: the user chose it."""
        descriptor = os.open(self.root, READ_FOLDER)
        try:
            for depth in range(len(parts)):
                with self._naming("/".join(parts[: depth + 1])):
                    inner = self._enter(descriptor, parts[: depth + 1], create)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _enter(self, parent: int, parts: Keys, create: bool) -> int:
        known = tuple(parts) in self._durable
        try:
            inner = os.open(parts[-1], READ_FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        except FileNotFoundError:
            if not create:
                raise
            known = False
            with suppress(FileExistsError):
                os.mkdir(parts[-1], dir_fd=parent)
            inner = os.open(parts[-1], READ_FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise self._not_plain("/".join(parts)) from None
            raise
        if create and not known:
            # Once per process, whoever made the folder: its maker may have died before its own fsync.
            os.fsync(parent)
            self._durable.add(tuple(parts))
        return inner

    @contextmanager
    def _naming(self, key: str) -> Iterator[None]:
        """Names the whole path in an error: of what lies below a descriptor the system knows the last part only."""
        try:
            yield
        except OSError as error:
            if isinstance(error.filename, str) and Path(error.filename).is_absolute():
                raise
            raise OSError(error.errno, error.strerror or str(error), str(self.root.absolute() / key)) from error

    def _link_new(self, scratch: int, folder: int, name: str, data: bytes | memoryview) -> bool:
        """Writes a temporary file and links it to its name: a link, unlike a rename, fails on a taken name."""
        temporary = f"{os.getpid()}-{secrets.token_hex(16)}"
        with self._naming("tmp"):
            descriptor = os.open(temporary, NEW_FILE, 0o666, dir_fd=scratch)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
            try:
                os.link(temporary, name, src_dir_fd=scratch, dst_dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                # Collected, after waiting longer than the grace period: it is written anew.
                if os.fstat(descriptor).st_nlink or not os.fstat(folder).st_nlink:
                    raise
                return False
            except FileExistsError:
                # NFS may repeat a request whose answer was lost: a second link to our file shows that we did win.
                return os.fstat(descriptor).st_nlink == 2
            except OSError as error:
                if error.errno in _NO_HARD_LINKS:
                    raise Unavailable(
                        "this file system has no hard links, which publishing needs to never overwrite anything. "
                        "Nothing was published; put the registry on a local disk or NFS."
                    ) from None
                raise
            return True
        finally:
            os.close(descriptor)
            # A temporary file that stays is garbage: nothing ever reads it.
            with suppress(OSError):
                os.unlink(temporary, dir_fd=scratch)

    def _not_plain(self, key: str) -> LabError:
        return Damaged(
            f"{self.where(key)!a} is a link or something else that is neither a plain file nor a "
            "folder of the registry: it is not read. Remove it and restore the original from a copy."
        )


def _touch(name: str, folder: int) -> bool:
    """Whether a name is there. Its time is set to now, so that what is about to be used is not collected."""
    if not _present(name, folder):
        return False
    try:
        os.utime(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
    return True


def _present(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
