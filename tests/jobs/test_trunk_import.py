"""A pretrained trunk in a lab: imported, listed, shown, checked, and a module trained beside it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from moe_lab.cli import main
from moe_lab.compose.lockfile import pin
from moe_lab.compose.parts import load_trunk
from moe_lab.errors import LabError
from moe_lab.jobs.trunk_check import compare_logits
from moe_lab.registry import Registry
from tests.trunks.cases import CASES, make_weights, write_folder
from tests.trunks.test_families import golden

Capture = pytest.CaptureFixture[str]
MODULE = """
kind: module
name: north/notes
licence: CC0-1.0
trunk: hf/tiny
width: 32
ladder: [16, 32]
data:
  name: notes
  heldout: 0.5
  sources: [{type: files, paths: ["text/*.txt"]}]
train: {steps: 2, batch_size: 2, seq_len: 32, learning_rate: 1e-3}
heldout_rows: 2
"""
STUDY = """
kind: study
name: beside
stages: [trunk.yaml, notes.yaml]
"""
IMPORT = """
kind: import
name: hf/tiny
licence: Apache-2.0
source: model
routed_layers: 2-3
block: 16
"""


def import_tiny(lab: Path, source: Path, *options: str) -> int:
    command = ["--lab", str(lab), "trunk", "import", str(source), "--name", "hf/tiny", "--routed-layers", "2-3"]
    return main([*command, "--block", "16", *options])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = make_weights(golden("llama3-new")[2]["shapes"], gemma=False)
    config = CASES["llama3-new"] | {"eos_token_id": [256, 3]}
    return write_folder(tmp_path / "model", config, weights)


def test_what_was_imported_is_listed_and_shown(lab_folder: Path, model: Path, capsys: Capture) -> None:
    assert import_tiny(lab_folder, model, "--licence", "Apache-2.0") == 0
    said = capsys.readouterr().out
    assert "published hf/tiny@1" in said
    assert "rows of the embedding stand for no token" in said
    assert "trunk check hf/tiny@1" in said
    assert import_tiny(lab_folder, model, "--licence", "Apache-2.0") == 0
    assert "already published hf/tiny@1" in capsys.readouterr().out
    assert main(["--lab", str(lab_folder), "trunk", "list"]) == 0
    assert "hf/tiny@1" in (listed := capsys.readouterr().out)
    assert "2 of 4" in listed
    assert main(["--lab", str(lab_folder), "trunk", "show", "hf/tiny"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["origin"]["family"] == "llama"
    assert shown["ends"] == [256, 3]
    assert shown["trunk"]["rope_scaling"]["type"] == "llama3"
    assert shown["licence"] == "Apache-2.0"


def test_an_empty_registry_says_how_to_begin(lab_folder: Path, capsys: Capture) -> None:
    Registry(lab_folder / "registry")
    assert main(["--lab", str(lab_folder), "trunk", "list"]) == 0
    assert "trunk import --help" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--name", "tiny"], "name: .*owner/name"),
        (["--name", "hf/tiny@3"], "must be owner/name alone"),
        (["--routed-layers", "3-x"], '"3-x" is no list of layers; write 20-29, or 0,4,8-11'),
        (["--routed-layers", "9"], r"routed_layers \[9\] must lie in 0..3"),
        (["--block", "0"], "block: must be (at least 1|greater than 0)"),
        (["--eos", "<nothing>"], 'no token "<nothing>" to end documents with'),
        (["--tokenizer", "absent.json"], "absent.json is not there"),
    ],
)
def test_a_wrong_option_is_one_line(
    lab_folder: Path, model: Path, options: list[str], reason: str, capsys: Capture
) -> None:
    assert import_tiny(lab_folder, model, *options) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert re.search(reason, said), said


def test_a_source_that_is_not_there(lab_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    assert import_tiny(lab_folder, tmp_path / "absent") == 2
    assert "is not there; name the folder of a Hugging Face model, or a GGUF file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_check_runs_it(lab_folder: Path, model: Path, capsys: Capture) -> None:
    assert import_tiny(lab_folder, model) == 0
    assert main(["--lab", str(lab_folder), "trunk", "check", "hf/tiny"]) == 0
    assert "bits per byte of 384 bytes of English and Python" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_imports_a_trunk_and_trains_beside_it(
    lab_folder: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.txt").write_text(f"note {number}: {'and so on ' * (number % 7)}until it ends\n")
    for name, text in (("trunk", IMPORT), ("notes", MODULE), ("beside", STUDY)):
        (tmp_path / f"{name}.yaml").write_text(text)
    command = ["--lab", str(lab_folder), "run", str(tmp_path / "beside.yaml")]
    assert main(command) == 0, capsys.readouterr().err
    assert main(command) == 0
    assert capsys.readouterr().out.count("already done") == 2
    registry = Registry(lab_folder / "registry")
    assert {str(entry.ref) for entry in registry.list()} == {"hf/tiny@1", "north/notes@1"}
    trunk = load_trunk(registry, pin(registry, "hf/tiny", "trunk"))
    assert trunk.tokenizer.vocab_size == 257


def test_logits_that_are_the_same_agree_and_others_do_not() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    same = compare_logits(logits, logits)
    assert (same.difference, same.same_best) == (0, 5)
    same.require()
    other = compare_logits(logits + 0.01 * logits[::-1], logits)
    assert other.divergence > 0
    with pytest.raises(LabError, match="the logits are not the same"):
        other.require()
