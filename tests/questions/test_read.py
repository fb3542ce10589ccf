"""Other people's files: joined by key, checked cell by cell, refused in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from moe_lab.errors import LabError
from moe_lab.questions.read import map_table, read_table
from moe_lab.questions.spec import OutcomesSpec

BASE: dict[str, Any] = {
    "kind": "outcomes",
    "name": "mine",
    "items": {"path": "items.csv"},
    "text": ["question"],
    "candidates": [{"name": "a", "cost": 1}, {"name": "b", "cost": 2}],
}
CSV = "question,topic,a,b\nwhat?,x,1,0\nwhy?,y,0.5,1\n"


def read(folder: Path, content: str = CSV, name: str = "items.csv", /, **changes: Any):
    (folder / name).write_text(content, encoding="utf-8")
    return map_table(OutcomesSpec.model_validate_json(json.dumps({**BASE, **changes})), folder)


def test_a_csv_by_its_mapping(tmp_path: Path) -> None:
    table, warnings = read(tmp_path, group="topic")
    assert warnings == []
    assert table.names == ("a", "b")
    assert table.text_N == ("what?", "why?")
    assert [table.groups[g] for g in table.group_N] == ["x", "y"]
    assert table.outcome_NC.tolist() == [[1, 0], [0.5, 1]]
    assert table.cost_NC.tolist() == [[1, 2], [1, 2]]


def test_every_kind_of_file_reads_the_same(tmp_path: Path) -> None:
    rows = [{"question": "what?", "a": True, "b": 0}, {"question": "why?", "a": 0.5, "b": "1"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "items.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    (tmp_path / "items.tsv").write_text(CSV.replace(",", "\t"))
    expected, _ = read(tmp_path)
    for name in ("items.jsonl.gz", "items.csv.gz", "items.tsv"):
        table, _ = read(tmp_path, items={"path": name})
        assert table.digest == expected.digest


def test_files_are_joined_by_key_and_not_by_order(tmp_path: Path) -> None:
    (tmp_path / "preds.csv").write_text("id,a,b\n2,NA,C\n1,B,B\n")
    items = '{"id": 1, "question": "q1", "answer": "B"}\n{"id": 2, "question": "q2", "answer": "NA"}\n'
    table, _ = read(
        tmp_path,
        items,
        "items.jsonl",
        items={"path": "items.jsonl", "key": "id"},
        join=[{"path": "preds.csv", "key": "id"}],
        right_when_equals="answer",
    )
    # "NA" is an answer like any other, and an answer that was not parsed would be wrong.
    assert table.outcome_NC.tolist() == [[1, 1], [1, 0]]


def test_a_list_in_a_column_is_its_lines(tmp_path: Path) -> None:
    lines = json.dumps({"question": "q", "options": ["x", 2], "a": 1, "b": 1})
    table, _ = read(tmp_path, lines, "i.jsonl", items={"path": "i.jsonl"}, text=["question", "options"])
    assert table.text_N == ("q\nx\n2",)


def test_costs_may_differ_by_item(tmp_path: Path) -> None:
    candidates = [{"name": "a", "cost_column": "spent"}, {"name": "b", "cost": 2}]
    table, warnings = read(tmp_path, "question,a,b,spent\nq,1,1,3\nr,1,0,5\n", candidates=candidates)
    assert table.cost_NC.tolist() == [[3, 2], [5, 2]]
    assert "b: the same cost on every item while others' costs vary; was it measured?" in warnings


@pytest.mark.parametrize(
    ("text", "changes", "reason"),
    [
        (CSV, {"group": "topik"}, 'no column "topik". Did you mean "topic"?'),
        (CSV, {"text": ["Question"]}, 'no column "Question"'),
        (CSV.replace("0.5", ""), {}, "1 of 2 items lack an outcome or a cost, most often of a (1); fill them in, or"),
        (CSV.replace("0.5", "nan"), {}, "1 of 2 items lack an outcome or a cost"),
        (CSV.replace("0.5", "B"), {}, 'a: "B" is not a number, true or false'),
        (CSV.replace("0.5", "inf"), {}, "item 1 has the outcome inf for a"),
        ("question,a,b\nq,,1\nr,,1\n", {"missing": "drop"}, "it has none at all, so leave that candidate out"),
        ("question,a,b\nq,,1\nr,1,\n", {"missing": "drop"}, "no item has them all"),
        ("question,a,b\nq,1,1\nr,1\n", {}, "this row has more or fewer cells than the header"),
        ("question,a,b\n", {}, "no rows"),
        ("question,a,b\nq,1,0\nq,1,0\n", {"duplicates": "refuse"}, "1 of 2 items look the same"),
        (CSV, {"candidates": [{"name": "a", "cost": -1}]}, "item 0 costs -1 with a; costs begin at 0"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path: Path, text: str, changes: dict, reason: str) -> None:
    with pytest.raises(LabError) as error:
        read(tmp_path, text, **changes)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_items_with_gaps_can_be_dropped_by_name(tmp_path: Path) -> None:
    table, warnings = read(tmp_path, CSV.replace("0.5", ""), missing="drop")
    assert table.outcome_NC.tolist() == [[1, 0]]
    assert "1 of 2 items lack an outcome or a cost, most often of a (1); those items were dropped" in warnings[0]


def test_a_join_that_loses_items_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preds.csv").write_text("id,a,b\n1,1,0\n1,0,1\n")
    joined = {"items": {"path": "i.csv", "key": "id"}, "join": [{"path": "preds.csv", "key": "id"}]}
    with pytest.raises(LabError, match="id 1 is there twice"):
        read(tmp_path, "id,question\n1,q\n", "i.csv", **joined)
    (tmp_path / "preds.csv").write_text("id,a,b\n1,1,0\n")
    with pytest.raises(LabError, match="1 items of i.csv are not in it, first id 2"):
        read(tmp_path, "id,question\n1,q\n2,r\n", "i.csv", **joined)


def test_files_may_lie_in_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOE_LAB_OUTCOMES", raising=False)
    spec = OutcomesSpec.model_validate_json(json.dumps({**BASE, "items": {"path": "sub/items.csv"}}))
    with pytest.raises(LabError, match="no such file, .* MOE_LAB_OUTCOMES is not set"):
        map_table(spec, tmp_path)
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "items.csv").write_text(CSV)
    monkeypatch.setenv("MOE_LAB_OUTCOMES", str(tmp_path / "data"))
    assert len(map_table(spec, tmp_path)[0]) == 2


def test_a_mapping_is_a_config(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(CSV)
    (tmp_path / "mine.yaml").write_text(json.dumps(BASE))
    assert read_table(tmp_path / "mine.yaml")[0].names == ("a", "b")
    for changes, reason in (
        ({"text": []}, "a router needs something to look at"),
        ({"candidates": [{"name": "a"}]}, "candidate a needs one of `cost` and `cost_column`"),
        ({"candidates": [{"name": "a", "cost": 1}] * 2}, "candidate a is listed twice"),
        ({"join": [{"path": "p.csv"}]}, "every file needs its `key` column"),
    ):
        (tmp_path / "bad.yaml").write_text(json.dumps({**BASE, **changes}))
        with pytest.raises(LabError, match=reason):
            read_table(tmp_path / "bad.yaml")
