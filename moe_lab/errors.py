"""What a person did that cannot work, said in one line: the value, the rule, the next step."""

from __future__ import annotations

import difflib
import errno
import signal
from collections.abc import Iterable


class LabError(Exception):
    """What cannot be done, by no fault of ours. The command line prints it as one line and exits with 2.

    Raised as itself it is a mistake in what somebody wrote or asked for, which a server answers with 400 (Bad Request).
    The classes below are the other cases. They say who can mend it; the text says how.
    """


class NotFound(LabError):
    """What was named is not there: an artifact, version or tensor, a file, a config, a contribution. HTTP: 404."""


class Refused(LabError):
    """A rule says no to what is well formed: trust, admission, rights, a taken name, a misfit of parts. HTTP: 409."""


class Damaged(LabError):
    """What the lab stored is not what it wrote: other bytes, cut short, malformed, or a part is missing. HTTP: 500."""


class Unavailable(LabError):
    """What is needed cannot be had now: a store, server, device, compiler, package, lock, room on disk. HTTP: 503."""


class PeerLostError(Unavailable):
    """Another process of this run is gone. Threads that wait for it never end, so the process must leave at once."""


class Interrupted(BaseException):
    """A person or the system stopped the work. The command line says what was kept and how to go on.

    Attributes:
        signum: the signal that was sent.
        kept: the step that was saved before the work ended, for a person; empty if nothing was.
    """

    def __init__(self, signum: int, kept: str = "") -> None:
        super().__init__(signum, kept)
        self.signum, self.kept = signum, kept

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"{name} after {self.kept}" if self.kept else name


_NOT_THERE = (errno.ENOENT, errno.ENXIO)
_NO_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
_BAD_PATH = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST, errno.EINVAL)
_LISTED = 230  # characters of the names that a mistake is answered with


def classify(error: Exception) -> type[LabError]:
    """Returns the class to raise in place of an error: a `LabError`'s own, the system's by its number, else `LabError`.

    A file that a library cannot understand is an `OSError` without a number: a plain mistake, as any malformed input.
    """
    if isinstance(error, LabError):
        return type(error)
    number = error.errno if isinstance(error, OSError) else None
    if number in _NOT_THERE:
        return NotFound
    if number in _NO_RIGHTS:
        return Refused
    return LabError if number is None or number in _BAD_PATH else Unavailable


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns ` Did you mean "x"? Available: a, b.`, leaving out what does not apply."""
    available = sorted(choices)
    # A stranger's name may be megabytes long, and comparing takes long then.
    close = difflib.get_close_matches(name[:200], available, n=1, cutoff=0.6)
    # A short name is far from a long one that holds it: mine, mine-router.
    close = close or [known for known in available if len(name) > 2 and name in known.split("/")[-1]]
    guess = f' Did you mean "{close[0]}"?' if close else ""
    listed = ", ".join(available)
    if len(listed) > _LISTED:
        listed = listed[:_LISTED].rpartition(", ")[0]
        listed += ", ..." if listed else available[0]
    return f"{guess} Available: {listed or 'none'}."


def counted(number: int, thing: str) -> str:
    """Returns `1 problem`, `2 problems`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """A stranger's text on one line: what could steer a terminal or reorder a line shows as `\\x1b` and the like."""
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)
