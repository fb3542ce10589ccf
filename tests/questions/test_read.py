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


def test_numbers_are_answers_as_numbers_and_null_is_none(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "right": n, "a": float(n), "b": str(n)} for n in range(3)]
    rows += [{"question": "q3", "right": None, "a": None, "b": "B"}, {"question": "q4", "right": 4, "a": None, "b": 4}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    how = {"items": {"path": "i.jsonl"}, "right_when_equals": "right"}
    with pytest.raises(LabError, match="1 of 5 items lack an outcome or a cost, most often of a"):
        read(tmp_path, lines, "i.jsonl", **how)
    table, _ = read(tmp_path, lines, "i.jsonl", **how, missing="drop")
    assert table.outcome_NC.tolist() == [[1, 1]] * 3 + [[0, 1]]
    lines = json.dumps({"question": "q", "right": True, "a": 1, "b": True})
    with pytest.raises(LabError, match=r"i\.jsonl:1: a: 1 and true cannot be compared"):
        read(tmp_path, lines, "i.jsonl", **how)


def test_a_question_or_group_that_is_null_is_missing(tmp_path: Path) -> None:
    rows = [{"question": "q", "lines": ["x", "y"], "topic": "t", "a": 1, "b": 0} for _ in range(4)]
    rows[1]["question"], rows[2]["lines"], rows[3]["topic"] = None, ["x", None], None
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    how = {"items": {"path": "i.jsonl"}, "text": ["question", "lines"], "group": "topic"}
    with pytest.raises(LabError, match="3 of 4 items lack their question or group, most often question"):
        read(tmp_path, lines, "i.jsonl", **how)
    table, warnings = read(tmp_path, lines, "i.jsonl", **how, missing="drop")
    assert (table.text_N, table.groups) == (("q\nx\ny",), ("t",))
    assert "those items were dropped" in warnings[0]


def test_half_a_surrogate_pair_is_refused_before_any_work(tmp_path: Path) -> None:
    for column in ("question", "topic"):
        row = {"question": "q", "topic": "t", "a": 1, "b": 0, "answer of a": "cut \ud83d"}
        lines = f"{json.dumps(row)}\n{json.dumps({**row, column: 'cut ' + chr(0xD83D)})}\n"
        with pytest.raises(LabError, match=rf'i\.jsonl:2: column "{column}": half of a surrogate pair at character 4'):
            read(tmp_path, lines, "i.jsonl", items={"path": "i.jsonl"}, group="topic")


def test_two_candidates_of_one_column_are_refused(tmp_path: Path) -> None:
    candidates = [{"name": "a", "cost": 1}, {"name": "b", "column": "items.a", "cost": 2}]
    with pytest.raises(LabError, match='a and b have the same column, "a"; give each its own'):
        read(tmp_path, candidates=candidates)


def test_a_column_of_two_files_may_be_named_with_its_file(tmp_path: Path) -> None:
    for name, values in (("ma", "10"), ("mb", "11")):
        (tmp_path / f"{name}.csv").write_text(f"id,correct\n0,{values[0]}\n1,{values[1]}\n")
    how: dict[str, Any] = {"items": {"path": "items.csv", "key": "id"}}
    how["join"] = [{"path": f"{name}.csv", "key": "id"} for name in ("ma", "mb")]
    for columns, refused in ((("correct", "correct"), True), (("ma.correct", "mb.correct"), False)):
        candidates = [{"name": n, "column": c, "cost": i} for i, (n, c) in enumerate(zip("ab", columns, strict=True))]
        if refused:
            with pytest.raises(LabError, match='name it with its file: "ma.correct" or "mb.correct"'):
                read(tmp_path, "id,question\n0,p\n1,q\n", **how, candidates=candidates)
        else:
            table, _ = read(tmp_path, "id,question\n0,p\n1,q\n", **how, candidates=candidates)
            assert table.outcome_NC.tolist() == [[1, 1], [0, 1]]


def test_costs_as_a_mean_and_in_another_unit(tmp_path: Path) -> None:
    text = "question,a,b,tokens\nq,50,100,3\nr,0,,9\ns,100,50,\nt,100,0,5\n"
    candidates = [
        {"name": "a", "mean_cost_column": "tokens", "cost_scale": 2},
        {"name": "b", "cost": 0.25},
    ]
    table, _ = read(tmp_path, text, candidates=candidates, outcome_scale=0.01, cost_scale=4, missing="drop")
    # The mean is of the items that are kept and have a cost: 3 and 5.
    assert table.cost_NC.tolist() == [[8, 1]] * 3
    assert table.outcome_NC.tolist() == [[0.5, 1], [1, 0.5], [1, 0]]
    candidates[0] = {"name": "a", "cost_column": "tokens"}
    table, _ = read(tmp_path, text, candidates=candidates, cost_scale=4, missing="drop")
    assert table.cost_NC.tolist() == [[12, 1], [20, 1]]
    with pytest.raises(LabError, match="b has no numbers to take the mean of for a"):
        read(tmp_path, "question,a,b\nq,1,\n", candidates=[{"name": "a", "mean_cost_column": "b"}])


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
        (CSV.replace("0.5", "B"), {}, 'items.csv:3: a: "B" is not a number, true or false'),
        (CSV.replace("0.5", "1_0"), {}, 'items.csv:3: a: "1_0" is not a number, true or false'),
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
        ({"items": {"path": "items.csv", "drop": "x.txt"}}, "`drop` names rows by their `key`"),
        ({"right_when_equals": "topic", "outcome_scale": 2}, "leave out `outcome_scale`"),
    ):
        (tmp_path / "bad.yaml").write_text(json.dumps({**BASE, **changes}))
        with pytest.raises(LabError, match=reason):
            read_table(tmp_path / "bad.yaml")
