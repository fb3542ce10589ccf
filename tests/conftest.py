"""Fixtures that more than one folder of tests needs."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from moe_lab.lab import init_lab

if TYPE_CHECKING:
    from moe_lab.evaluation.results import Results

REPOSITORY = Path(__file__).resolve().parent.parent

# Eight devices, of which everything uses the first unless it makes a mesh. Read when jax starts.
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# They meet in collectives; XLA ends the process when one of them is a minute late, as on a machine that stands still
# for others' work. A true knot is untied by pytest's own limit, which says where it was.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_collective_call_terminate_timeout_seconds=900")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own lab and registry must not leak into the tests."""
    for name in ("HOME", "REGISTRY", "TRACEBACK", "TRUST", "KEY", "KEY_PASSPHRASE"):
        monkeypatch.delenv(f"MOE_LAB_{name}", raising=False)


@pytest.fixture
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def synthetic_results() -> "Results":
    """A synthetic evaluation, made once; what it is made of is imported by those who ask for it."""
    from tests.evaluation.synthetic import build_synthetic_results

    return build_synthetic_results()


@pytest.fixture
def lab_folder(tmp_path: Path) -> Path:
    """A fresh lab, as `moe-lab init` makes it."""
    return init_lab(tmp_path / "lab")


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs this interpreter in a process of its own, with the checkout and `path` importable."""

    def run(
        *arguments: str, cwd: Path = tmp_path, path: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        paths = [str(path)] if path else []
        inherited = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
        environment = {**inherited, "PYTHONPATH": os.pathsep.join([*paths, str(REPOSITORY)]), **(env or {})}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def moe_lab(
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the `moe-lab` command in a process of its own: `moe_lab("module", "list", cwd=folder)`."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return python("-m", "moe_lab", *arguments, **options)

    return run
