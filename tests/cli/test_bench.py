"""`moe-lab bench` is a command of its own and has `serve` below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lab.cli import main


def test_the_help_shows_cases_and_the_command_below(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "    moe-lab bench all --peers --out docs/performance" in lines
    assert any(line.split()[:2] == ["serve", "Measure"] for line in lines)
    assert any("Cases by name" in line for line in lines)
    assert main(["bench", "serve", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Usage: moe-lab bench serve [OPTIONS]")
    assert any(line.split()[:1] == ["--batch-lane"] for line in lines)


def test_a_first_word_is_a_case_unless_it_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["T9"], ["T9", "--rounds", "2"], ["--rounds", "2", "T9"]):
        assert main(["bench", *words]) == 2
        assert 'no case is called "T9"' in capsys.readouterr().err
    assert main(["bench", "--list"]) == 0
    assert "T2048-D512-E8k2-uniform" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'composition'. See: moe-lab bench serve --help"),
        (["x", "--rounds", "2"], "No such option: --rounds"),
        (["x", "--rates", "1,a"], '--rates is "1,a"; it must be numbers above 0 with commas between, such as 0.5,1,2'),
        (["x", "--rates", "0"], '--rates is "0"'),
        (["x", "--rates", "inf"], '--rates is "inf"'),
        (["x", "--throughput", "1.5"], "such as 1,4,16"),
        (["x", "--rates", ""], "there is nothing to measure"),
        (["x", "--ttft", "0"], "ttft"),
        (["x", "--prompt-characters", "9999999"], "give a longer --file"),
        (["x", "--file", "none.txt"], "--file none.txt: there is no such file"),
        pytest.param(
            ["nonesuch"], 'the server did not start: no config "nonesuch"', marks=pytest.mark.slow
        ),  # by another process
    ],
)
def test_a_mistake_of_a_load_is_one_line(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str], lab_folder: Path
) -> None:
    assert main(["--lab", str(lab_folder), "bench", "serve", *arguments]) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert message in errors
    assert len(errors.splitlines()) == 1
