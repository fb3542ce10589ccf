"""Where things lie that outlive a lab."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/moe-lab`, else `~/.cache/moe-lab`; `RuntimeError` on an account without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "moe-lab"
