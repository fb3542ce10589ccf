"""`moe-lab runs` on a ledger written by hand."""

from pathlib import Path

import pytest

from moe_lab.cli import main
from moe_lab.files import write_json
from moe_lab.training.ledger import record_event


@pytest.fixture
def lab(lab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("COLUMNS", raising=False)  # whoever runs the tests may have set how wide the terminal is
    runs = lab_folder / "runs"
    runs.mkdir(exist_ok=True)
    for kind, name in (("trunk", "lab/tiny"), ("module", "north/code"), ("module", "south/prose"), ("items", "cut")):
        run = f"{kind}-{name.replace('/', '-')}-01234567"
        (runs / run).mkdir()
        record_event(runs, "started", run=run, kind=kind, name=name)
    write_json(runs / "trunk-lab-tiny-01234567" / "result.json", {"claims": [{"value": "2.5", "domain": "prose"}]})
    record_event(runs, "interrupted", run="module-north-code-01234567", reason="SIGTERM after step 7 of 9", seconds=3.2)
    record_event(runs, "failed", run="module-south-prose-01234567", reason="the loss is not finite", seconds=1.0)
    (runs / "items-cut-01234567" / "result.json").write_text("")
    return lab_folder


def table_rows(printed: str) -> list[str]:
    """The lines below the column heads; a title that names a long folder may take several lines."""
    lines = printed.splitlines()
    [head] = [place for place, line in enumerate(lines) if {"kind", "name"} <= set(line.split())]
    return lines[head + 1 :]


def test_it_says_when_and_with_what_result_or_for_what_reason(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--lab", str(lab), "runs"]) == 0
    rows = table_rows(capsys.readouterr().out)
    told = [" ".join(row.split()) for row in rows]
    assert [row.split(maxsplit=2)[2] for row in told] == [
        "finished trunk lab/tiny 0 s 2.5 bits per byte on prose",
        "interrupted module north/code 3 s SIGTERM after step 7 of 9",
        "failed module south/prose 1 s the loss is not finite",
        "interrupted items cut 0 s result.json is empty or broken",
    ]
    assert all(row.startswith("20") for row in told)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["--state", "interrupted"], ["north/code", "cut"]),
        (["--kind", "module"], ["north/code", "south/prose"]),
        (["--kind", "module", "--state", "failed"], ["south/prose"]),
        (["code"], ["north/code"]),
    ],
)
def test_it_can_be_narrowed(lab: Path, capsys: pytest.CaptureFixture[str], asked: list[str], found: list[str]) -> None:
    assert main(["--lab", str(lab), "runs", *asked]) == 0
    rows = table_rows(capsys.readouterr().out)
    assert [row.split()[4] for row in rows] == found


def test_what_nothing_has_is_named(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--lab", str(lab), "runs", "--state", "done"]) == 2
    assert "Available: failed, finished, interrupted, running." in capsys.readouterr().err
    assert main(["--lab", str(lab), "runs", "nobody"]) == 0
    assert "none of the 4 runs" in capsys.readouterr().out


@pytest.mark.parametrize("width", [30, 50, 70, 100])
def test_no_width_breaks_a_word(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["--lab", str(lab), "runs"]) == 0
    printed = capsys.readouterr().out.split("\n", 1)[1]  # the title holds a path of any length
    words = printed.split()
    for word in ("interrupted", "south/prose", "SIGTERM", "result.json", "finished", "prose"):
        assert word in words
    assert max(map(len, printed.splitlines())) <= width
