"""Compiles the CPU kernel for this very processor, once, and keeps it in the user's cache.

The sources come with the package and the headers with jaxlib; all that has to be there is a C++ compiler. A kernel
enters the cache only after its numbers agreed with the definition, so what is found there is used without asking again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import jax
import jaxlib

from moe_lab.folders import user_cache

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-w")
TIMEOUT_SECONDS = 300


class CannotBuildError(Exception):
    """Why there is no kernel, in one line."""


def load_kernel(check: Callable[[], str | None]) -> None:
    """Makes XLA know the kernel.

    `check` runs a kernel that was compiled just now and says what is wrong with its numbers, or None.
    """
    compiler = _find_compiler()
    folder = _cache_folder()
    finished = folder / f"kernel-{_fingerprint(compiler)}.so"
    if finished.name in _loaded:  # XLA takes a kernel from one file only
        return
    if finished.exists():
        _loaded[finished.name] = _register(finished)
        return
    unchecked = folder / f".{finished.stem}-{os.getpid()}.so"
    try:
        _compile(compiler, unchecked)
        _loaded[finished.name] = _register(unchecked)
        wrong = check()
        if wrong is not None:
            del _loaded[finished.name]
            raise CannotBuildError(f"the compiled kernel is wrong here: {wrong}")
        unchecked.replace(finished)
    finally:
        unchecked.unlink(missing_ok=True)


def panel_tokens() -> int:
    """Tokens side by side in one of the loaded kernel's panels: three vectors of the processor it was compiled for."""
    assert _loaded, "obstacle() has not been asked, or there was one"
    return int(next(iter(_loaded.values())).moe_lab_panel())


def _find_compiler() -> str:
    if platform.system() == "Windows":
        raise CannotBuildError("it is not written for Windows")
    for name in (os.environ.get("CXX"), *COMPILERS):
        path = name and shutil.which(name)
        if path:
            return path
    raise CannotBuildError(f"no C++ compiler was found (looked for $CXX, {', '.join(COMPILERS)})")


def _cache_folder() -> Path:
    try:
        folder = user_cache() / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise CannotBuildError(f"there is no cache to keep it in ({error}); set XDG_CACHE_HOME to a folder") from None
    return folder


def _fingerprint(compiler: str) -> str:
    """Changes with whatever a compiled kernel depends on: a shared home may serve several processors."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.h")) + sorted(SOURCES.glob("*.cc")):
        digest.update(source.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=TIMEOUT_SECONDS).stdout
    for part in (version, repr((FLAGS, jaxlib.__version__, platform.machine(), _processor())).encode()):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _compile(compiler: str, target: Path) -> None:
    command = [compiler, *FLAGS, "-isystem", jax.ffi.include_dir(), str(SOURCES / "kernel.cc"), "-o", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f"{compiler} did not finish ({type(error).__name__})") from None
    if done.returncode:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), "it printed no error")
        raise CannotBuildError(f"{compiler} failed: {complaint.strip()[:200]}")


_loaded: dict[str, ctypes.CDLL] = {}
"""What this process has made known to XLA, by the name of the finished file."""


def _register(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotBuildError(f"{path} cannot be loaded ({error})") from None
    for name in ("moe_lab_forward", "moe_lab_backward"):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library
