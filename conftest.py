"""What every test lives under, the contributions' own included: the CPU, and reproducible examples."""

import os
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Many tests compile the same programs, each in a process of its own. As long as this run lasts they share them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="moe-lab-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # hundreds of small ones take a second together

# What these test is around the programs, or far coarser than rounding: files, commands, runs, figures. LLVM need not
# take pains with them; XLA's own passes are the same. Bits and kernels are tested elsewhere, as users get them.
_AROUND = (
    "bench",
    "cli",
    "evaluation",
    "generation",
    "jobs",
    "planning",
    "questions",
    "routing",
    "serving",
    "training",
)
_HERE = Path(__file__).parent
QUICKLY_COMPILED = [_HERE / "routers", _HERE / "distill", *(_HERE / "tests" / name for name in _AROUND)]
STUDY = _HERE / "tests" / "jobs" / "test_study.py"

# The first call of a jitted function compiles, so one example may take a hundred times as long as the next.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come before others, so that no process is left with a long one when the rest are done.

    The file whose study the others copy is the first: whoever asks for it while it is made has to wait.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path != STUDY, item.path not in slow))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Says how well to compile, to this process and to those it starts. A hook: fixtures of the session come first."""
    quickly = any(item.path.is_relative_to(folder) for folder in QUICKLY_COMPILED)
    if quickly != (os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"):
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quickly))
        if "jax" in sys.modules:
            import jax

            jax.config.update("jax_disable_most_optimizations", quickly)
            jax.clear_caches()
