"""A claim holds if it is measured again within the tolerance: relative, and on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lab.jobs import admission
from moe_lab.jobs.admission import check_module
from moe_lab.jobs.module import train_module
from moe_lab.jobs.train import load_training
from moe_lab.jobs.workspace import Workspace
from moe_lab.lab import find_lab

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("factor", "held"), [(1.0, True), (1.009, True), (0.991, True), (1.012, False), (0.988, False)]
)
def test_a_claim_may_differ_by_its_tolerance_and_no_more(
    finished_study: Path, monkeypatch: pytest.MonkeyPatch, factor: float, held: bool
) -> None:
    path = finished_study / "modules" / "code" / "module.yaml"
    spec, workspace = load_training(path), Workspace(find_lab(str(finished_study)), may_start_runs=False)
    candidate = train_module(workspace, spec, path.parent)
    claims = candidate.manifest["claims"]
    assert min(float(claim["value"]) for claim in claims) > 2  # so an absolute tolerance would be another one
    again = [{**claim, "value": float(claim["value"]) * factor} for claim in claims]
    monkeypatch.setattr(admission, "module_claims", lambda *_: again)
    finding = check_module(workspace, candidate, spec, path.parent)[-1]
    assert (finding.check, finding.passed) == ("claims", held)
    if not held:
        assert "the difference may be 1.0%" in finding.detail
