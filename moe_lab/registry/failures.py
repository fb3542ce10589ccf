"""What a person reads when the place that holds a registry fails."""

from __future__ import annotations

import errno

from moe_lab.errors import LabError, classify

_FULL = (errno.ENOSPC, errno.EDQUOT)


def describe_error(error: OSError) -> str:
    """What went wrong, and with which file, where that says more than the registry's own place does."""
    what = error.strerror or str(error)
    says_itself = hasattr(error, "advice") or error.errno in _FULL or not error.filename
    return what if says_itself else f"{what}: {error.filename}"


def write_error(action: str, error: OSError, outcome: str) -> LabError:
    """The error for a failed write: `action` is what was tried and where, `outcome` what is there now."""
    own_advice = getattr(error, "advice", None)
    if isinstance(own_advice, str):
        advice = own_advice[0].upper() + own_advice[1:]
    elif error.errno in _FULL:
        advice = "Free space there"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "Get write permission there"
    else:
        advice = "Check that disk"
    return classify(error)(
        f"cannot {action}: {describe_error(error)}. {outcome} "
        f"{advice} and run the same command again: it continues where it stopped."
    )
