"""`moe-lab generate` as a person or a script calls it."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_lab.cli import main
from tests.compose.published import MODULES, Published
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

COMPOSITION = """\
kind: composition
name: tiny
trunk: lab/trunk
modules: [{modules}]
router: {router}
"""
Told = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def lab(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lab = Path(shutil.copytree(published.lab.root, tmp_path_factory.mktemp("generate") / "lab"))
    for name, router in (("tiny", "lab/gain"), ("ahead", "lab/budget")):
        (lab / "configs" / f"{name}.yaml").write_text(COMPOSITION.format(modules=", ".join(MODULES), router=router))
    return lab


@pytest.fixture
def told(lab: Path, capfd: pytest.CaptureFixture[str]) -> Told:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--lab", str(lab), "generate", *arguments])
        return (code, *capfd.readouterr())

    return run


def test_it_prints_what_is_written_and_says_whose_modules_worked(told: Told) -> None:
    code, output, errors = told("tiny", "max_tokens=8", "--prompt", "def f(x):")
    assert code == 0, errors
    assert output.endswith("\n")
    assert "8 tokens in" in errors
    assert "multiply-adds a token in the routed layers: " in errors
    assert told("tiny", "max_tokens=8", "--prompt", "def f(x):")[1] == output, "greedy text repeats"
    assert told("tiny", "max_tokens=8", "--prompt", "def f(x):", "--stream")[1] == output


def test_it_draws_what_it_wrote(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "answer.svg"
    code, output, errors = told("tiny", "max_tokens=8", "--prompt", "def f(x):", "--picture", str(path))
    assert code == 0, errors
    assert f"drawn: {path}" in errors
    drawn = re.findall(r"<text [^>]*>([^<]*)</text>", path.read_text())
    assert drawn[0] == "def f(x):"
    assert any("of the tokens" in text for text in drawn)
    code, output, errors = told("tiny", "--prompt", "a", "--prompt", "b", "--picture", str(path))
    assert (code, output) == (2, "")
    assert "draws one text, and there are 2" in errors


def test_json_lines_in_and_out(told: Told, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    priced = {"prompt": "b", "price": 9.0, "temperature": 1.0, "without": [MODULES[0]]}
    lines = [{"prompt": "a", "max_tokens": 3}, priced]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
    code, output, errors = told("tiny", "max_tokens=5", "ignore_end=true", "--jsonl", str(prompts), "--json")
    assert (code, errors) == (0, "")
    first, second = map(json.loads, output.splitlines())
    assert (first["prompt"], first["end"], len(first["tokens"])) == ("a", "length", 3)
    assert (second["request"], second["receipt"]["price"], second["receipt"]["without"]) == (1, 9.0, [MODULES[0]])
    assert len(second["tokens"]) == 5
    assert second["receipt"]["tokens_read"] == 2 + 5 - 1
    token = first["tokens"][0]
    assert token["likeliest"][0] == [token["id"], token["logprob"]]
    for use in first["receipt"]["modules"]:
        assert use["module"].startswith(use["owner"])
        assert use["digest"].startswith("sha256-")


def test_prompts_come_from_files_and_standard_input(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text("naïve 中文")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("naïve 中文".encode())))
    code, output, _ = told("tiny", "max_tokens=4", "--file", str(tmp_path / "prompt.txt"), "--file", "-", "--color")
    assert code == 0
    one, two = output.split("--- 1\n")[1].split("--- 2\n")
    assert one == two
    assert "\x1b[38;5;" in one


def test_the_lines_of_the_page_run(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (REPOSITORY / "docs" / "generating.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    monkeypatch.chdir(lab)
    code = code.replace("quickstart/composition", "tiny").replace("snakes/python", MODULES[0])
    exec(compile(code, "generating.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in printed) == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny"], "nothing to write on"),
        (["tiny", "--prompt", "a", "temperatur=1"], 'did you mean "temperature"'),
        (["tiny", "--prompt", "a", "temperature=-1"], "temperature"),
        (["tiny", "--prompt", "a", "top_p=0"], "top_p"),
        (["tiny", "--prompt", "a", "seed=-1"], "seed"),
        (["tiny", "--prompt", "a", "--without", "north/cod"], 'cannot leave out "north/cod"'),
        (["tiny", "--prompt", "a", "--price", "nan"], "price is nan"),
        (["tiny", "--file", "none.txt"], "--file none.txt: there is no such file"),
        (["tiny", "--prompt", "a", "--prompt", "b", "--stream"], "one text as it is written, and there are 2"),
        (["ahead", "--prompt", "a"], "routes by what comes later in a text"),
        (["tiny", "--jsonl", "-", "--file", "-"], "standard input can be read once"),
    ],
)
def test_a_mistake_is_one_line(told: Told, arguments: list[str], message: str) -> None:
    code, output, errors = told(*arguments)
    assert (code, output) == (2, "")
    assert message.lower() in errors.lower()
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: is list, must be an object"),
        ('{"prompt": 7}', "line 1: prompt is 7; it must be a text"),
        ('{"prompt": "a", "price": "x"}', 'price is "x"'),
        ('{"prompt": "a", "without": "north/code"}', "must be a list of owner/name"),
        ('{"prompt": "a", "stopp": "x"}', "line 1"),
        ("", "there is no line in it"),
    ],
)
def test_a_bad_line_is_named(told: Told, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(line + "\n")
    code, output, errors = told("tiny", "--jsonl", str(tmp_path / "prompts.jsonl"))
    assert (code, output) == (2, "")
    assert message in errors
