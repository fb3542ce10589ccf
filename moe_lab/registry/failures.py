"""What a person reads when the place that holds a registry fails."""

from __future__ import annotations

import errno

from moe_lab.errors import LabError


def write_error(action: str, error: OSError, outcome: str) -> LabError:
    """The error for a failed write: `action` is what was tried and where, `outcome` what is there now."""
    own_advice = getattr(error, "advice", None)
    if isinstance(own_advice, str):
        advice = own_advice[0].upper() + own_advice[1:]
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "Free space there"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "Get write permission there"
    else:
        advice = "Check that disk"
    return LabError(
        f"cannot {action}: {error.strerror or error}. {outcome} "
        f"{advice} and run the same command again: it continues where it stopped."
    )
