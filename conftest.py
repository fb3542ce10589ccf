"""What every test lives under, the contributions' own included: the CPU, and reproducible examples."""

import os
import tempfile

import hypothesis

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Many tests compile the same programs, each in a process of its own. As long as this run lasts they share them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="moe-lab-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

# The first call of a jitted function compiles, so one example may take a hundred times as long as the next.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
