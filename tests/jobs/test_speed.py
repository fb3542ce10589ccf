"""`moe-lab speed`: costs against the routing of every token, prices against the costs they were looked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moe_lab.cli import main
from moe_lab.jobs.speed import SHARES
from moe_lab.nn.backends import native
from tests.compose.published import FIXED, publish_all

pytestmark = pytest.mark.slow
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab with published modules of random numbers, two compositions, and a text."""
    folder = tmp_path_factory.mktemp("speed") / "lab"
    publish_all(folder)
    for name, router in (("priced", "lab/gain"), ("fixed", f'{{type: fixed, candidate: "{FIXED["candidate"]}"}}')):
        (folder / "configs" / f"{name}.yaml").write_text(
            f"kind: composition\nname: {name}\ntrunk: lab/trunk\nmodules: [north/code, south/prose]\nrouter: {router}\n"
        )
    lines = [json.dumps({"text": f"line {number} holds words that are routed"}) for number in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    (folder / "configs" / "data").mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "data" / "notes.yaml").write_text(
        "kind: data\nname: notes\nheldout: 0.5\nsources:\n  - {type: jsonl, path: ../../text.jsonl}\n"
    )
    return folder


def test_each_price_costs_no_more_than_its_share(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "speed.json"
    command = ["--lab", str(lab), "speed", "priced", "rows=2", "seq_len=32", "--domain", "notes", "--rounds", "2"]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "nothing runs" in printed
    assert f"backend {'worklist' if native.obstacle() else 'native'}" in printed
    *priced, nothing = json.loads(out.read_text())["times"]
    costs = np.array([time["cost"] for time in priced])
    assert priced[0]["price"] == 0
    assert (np.diff(costs) <= 0).all()
    assert all(min(costs) <= share * costs[0] for share in SHARES)
    assert nothing["price"] is None
    assert nothing["cost"] == 0
    assert all(time["milliseconds"] > 0 for time in (*priced, nothing))


def test_a_router_that_does_not_read_the_price_is_one_line(lab: Path, capsys: Capture) -> None:
    command = ["--lab", str(lab), "speed", "fixed", "rows=2", "seq_len=32", "--domain", "notes"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "at every price" in message
    assert "such as gain" in message
