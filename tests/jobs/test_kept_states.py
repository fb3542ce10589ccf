"""A second module on the same text does not run the layers under the first routed one, and learns the same."""

from pathlib import Path

import numpy as np
import pytest

from moe_lab.cli import main
from moe_lab.compose.kept_states import KeptStates
from moe_lab.jobs.train import load_training, train_spec
from moe_lab.jobs.workspace import Workspace
from moe_lab.lab import find_lab

pytestmark = pytest.mark.slow


def trained(lab: Path, states: KeptStates | None, *overrides: str) -> dict[str, np.ndarray]:
    folder = find_lab(lab)
    path = folder.find_config("code")
    workspace = Workspace(folder, states=states)
    candidate = train_spec(workspace, load_training(path, ["train.seed=5", *overrides]), path.parent.absolute())
    return candidate.tensors()


def test_a_module_learns_the_same_from_kept_states(tiny_lab: Path) -> None:
    plain = trained(tiny_lab, None, "summary=plain")
    first, second = (KeptStates(tiny_lab / "runs" / "states", 10_000_000) for _ in range(2))
    kept = trained(tiny_lab, first, "summary=kept")
    again = trained(tiny_lab, second, "summary=again")
    assert (first.read, first.computed) == (0, 8)
    assert (second.read, second.computed) == (8, 0)
    for name, tensor in plain.items():
        np.testing.assert_allclose(kept[name], tensor, atol=1e-5)
        np.testing.assert_array_equal(again[name], kept[name])


def test_an_evaluation_reads_what_another_computed(tiny_lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--lab", str(tiny_lab), "eval", "evaluation", "--keep-states", "1"]
    assert main([*command, "prices=[0.0]"]) == 0, capsys.readouterr().err
    folder = tiny_lab / "runs" / "states"
    first = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert first
    assert main([*command, "prices=[0.0,0.5]"]) == 0, capsys.readouterr().err
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == first
