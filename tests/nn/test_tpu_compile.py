"""What a TPU would do with the grouped matmul path, from its compiler: no TPU is needed, only the `tpu-plan` extra."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# `make test` installs the compiler into a folder of its own and names it here.
FOLDER = os.environ.get("TPU_COMPILER", "")
FOUND = importlib.util.find_spec("libtpu") is not None or (Path(FOLDER) / "libtpu" / "libtpu.so").exists()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOUND, reason="libtpu is not installed: run make test, or pip install 'moe-lab[tpu-plan]'"),
]

CHIPS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
PADDED = CHIPS[0]


@functools.cache
def compiled(topology: str) -> dict[str, Any]:
    """What the compiler says of the layer of `compile_for_tpu.py`: of the large one for one chip, padded as well.

    Work is counted alike in both sizes, so the other chips' compilers get the small one.
    """
    options = ["--padded"] if topology == PADDED else ["--small"]
    repository = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [repository, FOLDER]))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": path}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # another test may be compiling
    script = Path(__file__).with_name("compile_for_tpu.py")
    done = subprocess.run(
        [sys.executable, script, topology, *options], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("topology", CHIPS)
def test_gradients_cost_two_forwards(topology: str) -> None:
    found = compiled(topology)
    true = found["true widths"]
    ideal = 6 * found["budget"] * found["d_model"] * found["block"]
    assert true["forward"]["flops"] == pytest.approx(ideal, rel=0.05)
    assert true["gradient"]["flops"] <= 1.1 * 3 * true["forward"]["flops"]


def test_memory_and_work_stay_below_padding() -> None:
    found = compiled(PADDED)
    true, padded = found["true widths"], found["padded to the widest"]
    for stage in ("forward", "gradient"):
        assert true[stage]["peak_bytes"] < padded[stage]["peak_bytes"]
        assert true[stage]["flops"] < padded[stage]["flops"]
