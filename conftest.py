"""What every test lives under, the contributions' own included: the CPU, and reproducible examples."""

import os

import hypothesis

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# The first call of a jitted function compiles, so one example may take a hundred times as long as the next.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
