"""`moe-lab outcomes`: tables of a composition's candidates, against running each candidate on the text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from moe_lab.cli import main
from moe_lab.compose.lockfile import pin
from moe_lab.compose.parts import find_module, load_trunk
from moe_lab.data import eval_batches
from moe_lab.errors import LabError
from moe_lab.evaluation.spec import OutcomeSettings
from moe_lab.jobs.measure import bits_per_byte, module_losses, trunk_losses
from moe_lab.jobs.outcomes import measure_composition
from moe_lab.jobs.workspace import Workspace
from moe_lab.questions.table import load_items
from moe_lab.routing.outcomes import load_outcomes
from tests.compose.published import FIXED, publish_all

COMPOSITION = f"""
kind: composition
name: pair
trunk: lab/trunk
modules: [north/code, south/prose]
router: {{type: fixed, candidate: "{FIXED["candidate"]}"}}
"""
NOTES = """
kind: data
name: notes
heldout: 0.5
sources:
  - {type: files, paths: ["../../text/*.txt"]}
"""
Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A lab with published modules of random numbers, a composition of two, and a domain of a few documents."""
    folder = tmp_path_factory.mktemp("outcomes") / "lab"
    lab = publish_all(folder).lab
    (folder / "pair.yaml").write_text(COMPOSITION)
    (folder / "text").mkdir()
    (folder / "configs" / "data").mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "data" / "notes.yaml").write_text(NOTES)
    for number in range(40):
        (folder / "text" / f"{number}.txt").write_text(f"document {number} says {'very ' * (number % 5)}little\n")
    return Workspace(lab)


def settings(**changed: Any) -> OutcomeSettings:
    return OutcomeSettings(**{"domains": ("notes",), "rows": 2, "seq_len": 32, "shortest_bytes": 4, **changed})


def test_every_candidate_alone_is_what_the_tables_hold(workspace: Workspace) -> None:
    folder = workspace.lab.root
    found = {per: measure_composition(workspace, "pair.yaml", folder, settings(), per) for per in ("token", "sequence")}
    trunk = load_trunk(workspace.registry, pin(workspace.registry, "lab/trunk", "trunk"))
    corpus = workspace.corpora(settings().domains, folder, trunk.tokenizer)[0]
    batches = eval_batches(corpus, "validation", 2, 32, 2)
    north = find_module(workspace.registry, pin(workspace.registry, "north/code", "module"))
    expected = {
        "trunk": bits_per_byte(trunk_losses(trunk.graph, trunk.state), batches),
        "north/code:4": bits_per_byte(module_losses(trunk, north.weights, north.kind, 1), batches),
        "north/code:8": bits_per_byte(module_losses(trunk, north.weights, north.kind, 2), batches),
    }
    table, items = load_outcomes(found["token"].path), load_items(found["sequence"].path)
    assert items.names == table.space.names == ("trunk", *list(expected)[1:], *(f"south/prose:{w}" for w in (4, 8, 12)))
    for name, value in expected.items():
        c = table.space.names.index(name)
        nats = table.loss_NSC[..., c][table.mask_NS].sum(dtype=float)
        assert nats / math.log(2) / table.bytes_NS[table.mask_NS].sum() == pytest.approx(value, rel=1e-5)
        assert found["token"].bits_per_byte_GC[0, c] == pytest.approx(value, rel=1e-5)
    assert items.groups == ("notes",)
    assert items.text_N is not None
    documents = [path.read_text() for path in (folder / "text").iterdir()]
    assert all(any(text in document for document in documents) for text in items.text_N)


def test_the_same_call_finds_what_it_measured_and_copies_it_out(workspace: Workspace, tmp_path: Path) -> None:
    folder = workspace.lab.root
    first = measure_composition(workspace, "pair.yaml", folder, settings(), "sequence")
    out = tmp_path / "new" / "items.parquet"
    again = measure_composition(workspace, "pair.yaml", folder, settings(), "sequence", out)
    assert not again.fresh
    assert again.path == out
    assert out.read_bytes() == first.path.read_bytes()
    assert list(out.parent.iterdir()) == [out]
    fewer = measure_composition(workspace, "pair.yaml", folder, settings(shortest_bytes=24), "sequence")
    assert fewer.path != first.path
    assert fewer.size < first.size


def test_what_cannot_be_measured_is_one_line(workspace: Workspace) -> None:
    folder = workspace.lab.root
    with pytest.raises(LabError, match=r"call it items\.csv\.parquet"):
        measure_composition(workspace, "pair.yaml", folder, settings(), "token", Path("items.csv"))
    with pytest.raises(LabError, match="lower shortest_bytes"):
        measure_composition(workspace, "pair.yaml", folder, settings(shortest_bytes=10_000), "sequence")
    # These modules were published without a word on their text.
    with pytest.raises(LabError, match="no composed module says what it was trained on"):
        measure_composition(workspace, "pair.yaml", folder, settings(domains=()), "token")


def test_from_a_composition_to_a_report(tiny_lab: Path, tmp_path: Path, capsys: Capture) -> None:
    lab, items = str(tiny_lab), tmp_path / "items.parquet"
    command = ["--lab", lab, "outcomes", "composition", "rows=16", "seq_len=64", "--out", str(items)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "code" in printed
    assert f"of 6 candidates: {items}" in printed
    assert main(command) == 0
    assert f"measured before: {items}" in capsys.readouterr().out
    table = load_items(items)
    assert set(table.groups) == {"code", "prose"}
    assert {card.family for card in table.candidates} == {None, "north/code", "south/prose", "north/code-mini"}
    (tiny_lab / "configs" / "sequences.yaml").write_text(
        f"kind: question_router\nname: lab/sequences\nlicence: Apache-2.0\ntable: {items}\n"
        "folds: 2\nresamples: 10\nprices: 8\niterations: 4\nneighbours: 0\n"
    )
    assert main(["--lab", lab, "route-report", "sequences"]) == 0
    assert "deferral area" in capsys.readouterr().out
    [report] = tiny_lab.glob("runs/question_router-lab-sequences-*/route-report.html")
    assert "loss in bits per byte, with its sign turned" in report.read_text()
