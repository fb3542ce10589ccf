"""The mappings in docs/outcome-tables.md read the tables that they are for, and every key is in its tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_lab.questions.read import read_table
from moe_lab.questions.spec import CandidateSpec, OutcomesSpec, TableFile
from moe_lab.questions.table import ItemTable


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


ANSWERS = [
    {"question": {"text": f"q{n}"}, "scores": {"gpt-4.1": 1, "small": n % 2, "other": None}, "note": None}
    for n in range(4)
]
RESULTS = {
    name: [
        {"index": f"i{n}", "question": f"q{n}", "result": {"score": (n + at) % 2, "cost": 0.001 * (n + at)}}
        for n in range(3)
    ]
    for at, name in enumerate(("haiku", "flash-2.0"))
}
RESPONSES = "prompt,weak,strong,split\nof {0} one?,0,100,test\nof {0} two?,50,100,dev\n"
JUDGED = [f"{n},{m},{t},{n + t}\n" for n in (1, 2) for m in ("small-8b", "large-70b") for t in (1, 2)]
FILES: dict[str, dict[str, str]] = {
    "mine": {"answers.csv": "question,subject,small_correct,large_correct\np,a,true,0\nq,b,0,1\n"},
    "nested": {"answers.json": json.dumps(ANSWERS), "seen-in-training.txt": "q2\n"},
    "stacked": {f"responses/mmlu_{name}.csv": RESPONSES.format(name) for name in ("art", "law")},
    "by-model": {f"{name}.jsonl": _lines(rows) for name, rows in RESULTS.items()},
    "long": {
        "questions.jsonl": _lines(
            [{"question_id": n, "category": "x", "turns": [f"first {n}", "then"]} for n in (1, 2)]
        ),
        "judged.csv": "question_id,model,turn,score\n" + "".join(JUDGED),
    },
}


def _mapping(repository: Path, name: str) -> str:
    page = (repository / "docs" / "outcome-tables.md").read_text(encoding="utf-8")
    [block] = re.findall(rf"```yaml\n(# configs/outcomes/{name}\.yaml\n.*?)```", page, re.DOTALL)
    return str(block)


@pytest.fixture
def documented(repository: Path, tmp_path: Path) -> Callable[[str], tuple[ItemTable, list[str]]]:
    def read(name: str) -> tuple[ItemTable, list[str]]:
        for path, text in FILES[name].items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text)
        (tmp_path / f"{name}.yaml").write_text(_mapping(repository, name).replace(".csv.gz", ".csv"))
        return read_table(tmp_path / f"{name}.yaml")

    return read


def test_the_mappings_of_the_page_read_their_tables(documented) -> None:
    assert documented("mine")[0].outcome_NC.tolist() == [[1, 0], [0, 1]]
    nested, warnings = documented("nested")
    assert nested.text_N == ("q0", "q1", "q3")
    assert nested.outcome_NC.tolist() == [[0, 1], [1, 1], [1, 1]]
    assert "1 of 4 rows were dropped" in warnings[0]
    stacked, _ = documented("stacked")
    assert stacked.text_N == ("of art one?", "of law one?")
    assert stacked.groups == ("mmlu_art", "mmlu_law")
    assert stacked.outcome_NC.tolist() == [[0, 1], [0, 1]]
    by_model, _ = documented("by-model")
    assert by_model.outcome_NC.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert by_model.cost_NC.round(9).tolist() == [[0, 2], [1, 2], [2, 2]]
    long, _ = documented("long")
    assert long.text_N == ("first 1", "first 2")
    assert long.outcome_NC.tolist() == [[2, 2], [3, 3]]


def test_every_mapping_of_the_page_is_read_here(repository: Path) -> None:
    page = (repository / "docs" / "outcome-tables.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"```yaml\n# configs/outcomes/([\w-]+)\.yaml", page)) == sorted(FILES)


def test_every_key_is_on_the_page(repository: Path) -> None:
    page = (repository / "docs" / "outcome-tables.md").read_text(encoding="utf-8")
    told = {word for row in re.findall(r"^\| .*$", page, re.MULTILINE) for word in re.findall(r"\w+", row)}
    keys = {key for spec in (OutcomesSpec, TableFile, CandidateSpec) for key in spec.model_fields}
    assert keys - told - {"kind", "name", "summary", "source", "licence"} == set()
