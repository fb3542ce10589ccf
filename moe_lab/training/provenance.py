"""What a run ran on: interpreter, packages, machine and the commit of the working directory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("moe-lab", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_GIT_SECONDS = 10


def environment() -> dict[str, Any]:
    """Returns what may explain a difference between two runs of one config."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "host": socket.gethostname(),
        "cpu_count": os.cpu_count(),
        "argv": sys.argv,
    }


def _version(package: str) -> str | None:
    """Returns the installed version; None for a package that is run from a folder without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names what differs of all that can change the bits of a resumed run."""

    def facts(env: dict[str, Any]) -> dict[str, Any]:
        return {
            "python": env.get("python"),
            **env.get("packages", {}),
            "machine": env.get("machine"),
            "cpu_count": env.get("cpu_count"),
        }

    old, new = facts(before), facts(now)
    return [f"{key} {old.get(key)} -> {value}" for key, value in new.items() if old.get(key) != value]


def git_state(folder: Path) -> dict[str, Any] | None:
    """Returns the commit and whether files differ from it; None outside a repository or without git."""
    status = _git(folder, "status", "--porcelain")
    if status is None:
        return None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")  # None in a repository without a commit
    return {"commit": commit.strip() if commit else None, "dirty": bool(status.strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
