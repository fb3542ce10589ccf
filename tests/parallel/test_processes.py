"""Two real processes with two devices each against one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.compose.published import TRUNK, Tokens, publish_all
from tests.jobs.together import REPOSITORY, free_port, stop
from tests.parallel.test_layer import close, drawn, on_one_device

pytestmark = pytest.mark.slow


def test_outputs_losses_and_gradients_are_those_of_one_device(tmp_path: Path) -> None:
    published = publish_all(tmp_path / "lab")
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    script, address = Path(__file__).with_name("in_processes.py"), f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, str(number), "2", str(published.lab.root), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        stop(*processes)
    one, other = (dict(np.load(tmp_path / f"{number}.npz")) for number in range(2))
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)

    h, modules, routing, goal = drawn()
    y, dh, dweight, dmodules = on_one_device(h, modules, routing, goal)
    wanted = {"y": y, "dh": dh, "dweight": dweight, "loss": (np.asarray(y) * np.asarray(goal)).sum()}
    for number, module in enumerate(dmodules):
        wanted |= {f"module {number} {name}": value for name, value in module._asdict().items()}
    for name, value in wanted.items():
        close(one[name], value)

    model = published.model(published.lock("lab/gain"))
    batch = Tokens(*map(np.concatenate, zip(*map(Tokens.draw, range(4)), strict=True)))
    arrays = model.arrays()
    decision = model.run(arrays, batch, model.enter(arrays, batch), available_E=model.available(), price=0.3)
    close(one["losses"], decision.loss_BS)

    # Between them the processes read every block once, each only what lies on its own two devices.
    blocks = sum(sum(module.layer_blocks.values()) for module in model.modules)
    read = [json.loads((tmp_path / f"{number}.json").read_text())["bytes_read"] for number in range(2)]
    assert sum(read) == blocks * 3 * TRUNK.d_model * TRUNK.block * 4
    assert max(read) < sum(read) * 2 / 3  # a device of the tiny model holds up to two of seven blocks
