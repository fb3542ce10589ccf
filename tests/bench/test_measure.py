"""Timing is fair, a drifting machine is noticed, and what is written can be read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe_lab.bench import measure
from moe_lab.bench.cases import Case
from moe_lab.bench.competitors import COMPETITORS
from moe_lab.bench.measure import Calibration, CaseResult, measure_cases, prepare_jax
from moe_lab.bench.picture import flops_per_byte
from moe_lab.bench.results import HEADER, Bench, Machine, rows, title
from moe_lab.bench.run import find_cases, find_competitors, group_cases, load, run_bench, save
from moe_lab.errors import LabError

CASE = Case(name="tiny", tokens=32, d_model=16, block=8, counts=(2, 1), top_k=1)
HALF = CASE.model_copy(update={"name": "half", "routing": "half"})


def measure_case(case: Case, *arguments: Any, **options: Any) -> CaseResult:
    *_, (result,) = measure_cases([case], *arguments, **options)
    return result


class Counted:
    """A competitor that writes down when it runs."""

    compile_seconds = 0.5
    temporary_bytes = (1 << 20, 3 << 20)

    def __init__(self, name: str, diary: list[str]) -> None:
        self.forward = lambda: diary.append(f"{name} forward")
        self.both = lambda: diary.append(f"{name} both")


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Calibrations to come; the last one stays."""
    coming = [100.0]
    monkeypatch.setattr(
        measure,
        "calibrate",
        lambda: Calibration(gflops=coming.pop(0) if len(coming) > 1 else coming[0], copy_gbytes=10.0),
    )
    return coming


def test_competitors_take_turns(rates: list[float]) -> None:
    diary: list[str] = []
    result = measure_case(CASE, {n: lambda _, n=n: Counted(n, diary) for n in ("a", "b")}, rounds=2)
    assert [diary[i].split()[0] for i in range(0, len(diary), 3)] == ["a", "a", "b", "b"] * 2
    assert [entry.competitor for entry in result.measurements] == ["a", "b"]
    assert result.attempts == 1


def test_cases_take_turns_and_each_round_is_known_at_once(rates: list[float]) -> None:
    diary: list[str] = []
    makers = {n: lambda case, n=n: Counted(f"{case.name}-{n}", diary) for n in ("a", "b")}
    documents = list(run_bench([CASE, HALF], makers, rounds=2, command="moe-lab bench", progress=lambda line: None))
    turns = [diary[i].split()[0] for i in range(0, len(diary), 6)]
    assert turns == ["tiny-a", "tiny-b", "half-a", "half-b"] * 2
    assert [[result.case.name for result in document.cases] for document in documents] == [["tiny", "half"]] * 2
    assert [document.cases[1].measurements[1].rounds for document in documents] == [2, 4]


def test_cases_that_do_not_fit_together_are_measured_one_group_after_another() -> None:
    own = 4 * 3 * 16 * 8 * 2 * 2
    assert CASE.padded_weight_bytes() == own
    sizes = {room: [len(group) for group in group_cases([CASE] * 5, 2, room)] for room in (0, 4 * own, 10 * own)}
    assert sizes == {0: [1] * 5, 4 * own: [2, 2, 1], 10 * own: [5]}


def test_a_drifting_machine_is_measured_again(rates: list[float]) -> None:
    rates[:] = [100.0, 80.0, 100.0, 95.0]
    told: list[str] = []
    result = measure_case(CASE, {"a": lambda _: Counted("a", [])}, rounds=1, progress=told.append)
    assert result.attempts == 2
    assert result.rate == 97.5
    assert any("differ by 20%" in line for line in told)


def test_a_slow_competitor_leaves_after_two_rounds(rates: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "seconds", lambda call: (call(), 30.0)[1])
    result = measure_case(CASE, {"a": lambda _: Counted("a", [])}, rounds=9, patience=20.0)
    assert result.measurements[0].rounds == 2


def test_shares_are_useful_work_over_the_calibrated_rate(rates: list[float]) -> None:
    result = measure_case(CASE, {"a": lambda _: Counted("a", [])}, rounds=1)
    entry = result.measurements[0].model_copy(update={"forward_ms": 2.0, "both_ms": 8.0})
    gflops = CASE.forward_flops() / 1e9 / 2e-3
    assert result.forward_share(entry) == pytest.approx(gflops / 100)
    assert result.both_share(entry) == pytest.approx(3 * gflops / 4 / 100)


@pytest.mark.slow
def test_real_competitors_are_measured_shown_and_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "MATMUL_SIZE", 64)
    monkeypatch.setattr(measure, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(measure, "MAX_DRIFT", 1.0)
    names = ("worklist", "dense masked")
    result = measure_case(CASE, {name: prepare_jax(COMPETITORS[name]) for name in names}, rounds=1)
    assert all(entry.forward_ms > 0 and entry.both_temporary_bytes for entry in result.measurements)
    assert all(len(row) == len(HEADER) for row in rows(result))
    assert "2 modules of widths 8 to 16" in title(result)
    assert flops_per_byte(result) > 0
    bench = Bench(command="moe-lab bench", machine=Machine.here(), cases=(result,))
    document, picture = save(bench, tmp_path / "out")
    assert load(document) == bench
    assert picture.stat().st_size > 1000


def test_names_are_found_by_a_part_and_misses_are_explained() -> None:
    assert [case.name for case in find_cases(["T2048-D512-E8k2-mixed"])] == ["T2048-D512-E8k2-mixed"]
    assert len(find_cases(["eightfold"])) == 1
    assert len(find_cases(["all"])) > 20
    with pytest.raises(LabError, match='no case is called "T9"'):
        find_cases(["T9"])
    with pytest.raises(LabError, match="Did you mean .worklist"):
        find_competitors(["worklst"], peers=False)
    with pytest.raises(LabError, match="need --peers"):
        find_competitors(["torch ModuleList"], peers=False)
