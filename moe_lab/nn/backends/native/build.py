"""Compiles the CPU kernel for this very processor, once, and keeps it in the user's cache.

The sources come with the package and the headers with jaxlib; all that has to be there is a C++ compiler. A kernel
enters the cache only after its numbers agreed with the definition, under a name that ends with its own digest, so what
is found there whole is used without asking again. What is not whole (a full disk, a power cut) is made anew: loading it
would end the process with a bus error.
"""

from __future__ import annotations

import contextlib
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

from moe_lab.files import sync, user_cache

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-w")
TARGETS = (
    "moe_lab_forward",
    "moe_lab_backward",
    "moe_lab_attention",
    "moe_lab_attention_backward",
    "moe_lab_cached_attention",
    "moe_lab_multiply",
    "moe_lab_multiply_narrow",
    "moe_lab_norm",
)
"""The calls that kernel.cc defines."""
TIMEOUT_SECONDS = 300


class CannotBuildError(Exception):
    """Why there is no kernel, in one line."""


def load_kernel(check: Callable[[], str | None]) -> None:
    """Makes XLA know the kernel.

    `check` runs a kernel that was compiled just now and says what is wrong with its numbers, or None.
    """
    compiler = _find_compiler()
    folder = _cache_folder()
    stem = f"kernel-{_fingerprint(compiler)}"
    if stem in _loaded:  # XLA takes a kernel from one file only
        return
    finished = _whole(folder, stem)
    if finished is not None:
        _loaded[stem] = _register(finished)
        return
    unchecked = folder / f".{stem}-{os.getpid()}.so"
    try:
        _compile(compiler, unchecked)
        _loaded[stem] = _register(unchecked)
        wrong = check()
        if wrong is not None:
            del _loaded[stem]
            raise CannotBuildError(f"the compiled kernel is wrong here: {wrong}")
        _keep(unchecked, folder / f"{stem}-{_digest(unchecked)}.so")
    finally:
        unchecked.unlink(missing_ok=True)


def _whole(folder: Path, stem: str) -> Path | None:
    """Finds a kernel whose bytes are those that its name tells; removes what is not whole."""
    for path in folder.glob(f"{stem}-*.so"):
        with contextlib.suppress(OSError):
            if path.stem.removeprefix(f"{stem}-") == _digest(path):
                return path
            path.unlink()
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _keep(unchecked: Path, finished: Path) -> None:
    """Gives a kernel its place in the cache once its bytes are on the disk; without room it serves this once."""
    with contextlib.suppress(OSError):
        sync(unchecked)
        unchecked.replace(finished)


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
"""What this process has made known to XLA, by what its compilation depends on."""


def _register(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotBuildError(f"{path} cannot be loaded ({error})") from None
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library
