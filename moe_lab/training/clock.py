"""The time as files of a run write it."""

from __future__ import annotations

import datetime


def utc_now() -> str:
    """Returns the time as ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
