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
JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
XLA_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
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
        "jax": _jax_settings(),
        "argv": sys.argv,
    }


def _jax_settings() -> dict[str, Any]:
    """Returns what the person's shell or program told JAX and XLA that changes the numbers they compute."""
    import jax

    settings = {name: jax.config.values.get(name) for name in JAX_SETTINGS}
    return settings | {name: os.environ.get(name) for name in XLA_VARIABLES}


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
            **{key: env[key] for key in ("python", "machine", "cpu_count") if key in env},
            **env.get("packages", {}),
            **env.get("jax", {}),
        }

    # What the attempt before did not write down, because its version did not know it, is not known to differ.
    old, new = facts(before), facts(now)
    return [f"{key} {old[key]} -> {value}" for key, value in new.items() if key in old and old[key] != value]


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
