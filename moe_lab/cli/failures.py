"""What a failure looks like: one line for what a person or the system did, none for what is our own fault."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import typer

from moe_lab.errors import LabError, printable

_FREE = "Free some space, then run the same command again."
_RIGHTS = "Check who may write there, or choose another folder."
_DISK = "Check that disk or share, then run the same command again."
_LIMIT = "That is a limit of this system: raise it (ulimit -a shows them), then run the same command again."
_MEMORY = "out of memory. Work on less at a time (batch_size, rows, seq_len), or on a machine that has more."
# What comes from outside. Any other number, such as a file that is not there, is a case that we should have thought of.
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FREE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS),
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.ELOOP: "Its links lead in a circle; name the place that is meant.",
    errno.ENOTDIR: "A file stands where a folder is needed; check the path.",
    errno.EISDIR: "A folder stands where a file is needed; check the path.",
    errno.EEXIST: "Something else has that name; remove it, or give another.",
    errno.EBUSY: "Something else uses it; wait, or stop that.",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.EAGAIN, errno.EMLINK), _LIMIT),
    **dict.fromkeys((errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN), _DISK),
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Python and JAX say these by text alone.
_BY_TEXT = {
    "Symlink loop from ": _ADVICE[errno.ELOOP],
    "Could not determine home directory": "Write the whole path instead of ~.",
    "can't start new thread": _LIMIT,
    "embedded null byte": "A path cannot hold the character NUL; check the names that were given.",
    "embedded null character": "A path cannot hold the character NUL; check the names that were given.",
}


def explain(error: Exception) -> str | None:
    """Returns the line to print for a mistake or for what the system refuses, or None for what is our own fault."""
    if isinstance(error, LabError):
        return printable(" ".join(str(error).splitlines()))
    if isinstance(error, typer.TyperException):
        return _explain_call(error)
    if isinstance(error, OSError):
        return _explain_system(error)
    if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED: Out of memory"):
        return _MEMORY
    if isinstance(error, RuntimeError | ValueError):
        for start, advice in _BY_TEXT.items():
            if str(error).startswith(start):
                return f"{_shown(error).rstrip('.')}. {advice}"
    return None


def _explain_call(error: typer.TyperException) -> str:
    usage = getattr(error, "ctx", None)
    help_hint = f" See: {usage.command_path} --help" if usage else ""
    message = " ".join(error.format_message().split()).rstrip(".")
    if message.endswith("option: --lab"):
        return "--lab goes before the command: moe-lab --lab DIR COMMAND"
    return f"{message}.{help_hint}"


def _explain_system(error: OSError) -> str | None:
    if error.errno == errno.ENOMEM:
        return _MEMORY
    if error.errno == errno.ENOENT and not _is_here():
        return "the current folder is not there any more; cd into one that is."
    if error.errno not in _ADVICE:
        return None
    if error.errno in _FULL:
        where = f" ({_shown(error.filename)})" if error.filename else ""
        return f"disk full{where}. {_FREE}"
    where = f"{_shown(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror}. {_ADVICE[error.errno]}"


def _is_here() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _shown(value: Any) -> str:
    """A path, its middle left out where it fills a screen: that is what is wrong with it, and no reading matter."""
    text = printable(os.fsdecode(value) if isinstance(value, str | bytes) else str(value))
    return text if len(text) <= 200 else f"{text[:90]}...{text[-90:]}"
