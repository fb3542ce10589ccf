"""Training in several real processes and on meshes of fake devices: the same numbers, and deaths that are survived."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moe_lab.cli import main
from moe_lab.registry import Registry
from tests.jobs.test_kill import wait_for_steps
from tests.jobs.tiny import write_tiny_lab
from tests.jobs.together import REPOSITORY, run_together, start_together, stop

pytestmark = pytest.mark.slow
STEPS = 30
# Every process compiles the step for itself, so it is the smallest one there is.
SMALL = ("train", "trunk", "--publish", "trunk.num_layers=1", "trunk.routed_layers=[0]")
TRUNK = (*SMALL, "--mesh", "data=1,expert=4,trunk=sharded")


def weights(lab: Path, name: str) -> dict[str, np.ndarray]:
    """What was published under a name."""
    return Registry(lab / "registry", create=False).tensors(name)


def digest(lab: Path, name: str) -> str:
    return Registry(lab / "registry", create=False).resolve(name).digest


def alone(lab: Path, *arguments: str, devices: int) -> subprocess.Popen[str]:
    """The command in one process."""
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    command = [sys.executable, "-m", "moe_lab", "--lab", str(lab), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_checkpoint(lab: Path, process: subprocess.Popen[str]) -> None:
    """Waits until there is something to resume from, or the process ends."""
    while process.poll() is None and not list((lab / "runs").glob("trunk-*/checkpoints/*/seal.json")):
        time.sleep(0.01)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab whose trunk two processes trained."""
    lab = write_tiny_lab(tmp_path_factory.mktemp("undisturbed") / "lab", STEPS)
    for code, output, errors in run_together(lab, *TRUNK):
        assert code == 0, output + errors
    return lab


def test_two_processes_train_what_one_trains(undisturbed: Path, tmp_path: Path) -> None:
    lab = write_tiny_lab(tmp_path / "lab", STEPS)
    assert main(["--lab", str(lab), *SMALL]) == 0
    one, two = (weights(folder, "lab/tiny") for folder in (lab, undisturbed))
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=2e-3, atol=2e-4, err_msg=name)


def test_a_lost_process_ends_the_other_and_both_resume_to_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    lab = write_tiny_lab(tmp_path / "lab", STEPS)
    first, second = start_together(lab, *TRUNK)
    try:
        wait_for_steps(lab, first, 10)
        second.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, errors = first.communicate(timeout=120)
        waited = time.monotonic() - killed
    finally:
        stop(first, second)
    assert first.returncode == 2, errors
    assert "process 0 of 2 lost another one" in errors, errors
    assert "Start the same command again in all processes" in errors
    assert "Traceback" not in errors
    assert waited < 60
    for code, output, errors in run_together(lab, *TRUNK):
        assert code == 0, output + errors
    assert digest(lab, "lab/tiny") == digest(undisturbed, "lab/tiny")


def test_one_that_is_told_to_end_saves_with_the_others_and_all_resume_to_the_same_bits(
    undisturbed: Path, tmp_path: Path
) -> None:
    lab = write_tiny_lab(tmp_path / "lab", STEPS)
    processes = start_together(lab, *TRUNK)
    try:
        wait_for_steps(lab, processes[0], 5)
        processes[1].send_signal(signal.SIGTERM)  # the other one hears of it at the next step that is logged
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        stop(*processes)
    assert [process.returncode for process in processes] == [143, 143], errors
    saved = [re.search(r"interrupted after step (\d+) of 30 of trunk lab/tiny", told) for told in errors]
    assert saved[0] is not None, errors
    assert saved[1] is not None, errors
    assert saved[0][1] == saved[1][1]
    for code, output, told in run_together(lab, *TRUNK):
        assert code == 0, output + told
    assert digest(lab, "lab/tiny") == digest(undisturbed, "lab/tiny")


def test_a_process_that_hangs_ends_the_others(tmp_path: Path) -> None:
    lab = write_tiny_lab(tmp_path / "lab", STEPS)
    first, second = start_together(lab, *TRUNK)
    try:
        wait_for_steps(lab, first, 10)
        second.send_signal(signal.SIGSTOP)
        _, errors = first.communicate(timeout=120)
    finally:
        stop(first, second)
    assert first.returncode == 2, errors
    assert "process 0 of 2 lost another one" in errors, errors
    assert "Traceback" not in errors


def test_training_resumes_on_another_mesh(undisturbed: Path, tmp_path: Path) -> None:
    """Begun on four devices in a row that share the trunk, killed, and ended on two rows of two with a trunk each."""
    lab = write_tiny_lab(tmp_path / "lab", STEPS)
    process = alone(lab, *TRUNK, devices=4)
    wait_for_checkpoint(lab, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    output = finish(alone(lab, *SMALL, "--mesh", "data=2,expert=2", devices=4))
    assert "resuming from step" in output
    two = weights(undisturbed, "lab/tiny")
    for name, values in weights(lab, "lab/tiny").items():
        np.testing.assert_allclose(two[name], values, rtol=2e-3, atol=2e-4, err_msg=name)


def test_a_module_trains_on_a_mesh_that_its_blocks_do_not_divide(undisturbed: Path) -> None:
    """Three blocks over four devices, one of them empty, and on one device: the same module."""
    train = ("train", "modules/code/module.yaml", "--publish")
    assert main(["--lab", str(undisturbed), *train]) == 0
    finish(alone(undisturbed, *train, "train.log_every=7", "--mesh", "data=1,expert=4,trunk=sharded", devices=4))
    one, other = (weights(undisturbed, f"north/code@{version}") for version in (1, 2))
    for tensor, values in one.items():
        np.testing.assert_allclose(other[tensor], values, rtol=2e-3, atol=2e-4, err_msg=tensor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mesh", "data=9,expert=1"), "mesh data=9,expert=1 needs 9 devices, and there are 8"),
        (("--mesh", "expert=x"), 'mesh "expert=x" is not understood'),
        (("--mesh", "expert=4,trunk=halved"), 'mesh "expert=4,trunk=halved" is not understood'),
        (("--mesh", "data=1,expert=8", "train.batch_size=6"), "a batch of 6 rows cannot be shared evenly by 8 devices"),
        (("--process", "0/2"), "--process needs --coordinator"),
        (("--coordinator", "127.0.0.1:1"), "needs --process I/N"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    lab = write_tiny_lab(tmp_path / "lab", STEPS)
    assert main(["--lab", str(lab), "train", "trunk", *arguments]) == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in error
