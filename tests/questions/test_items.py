"""Several files: stacked by rows, joined by key, filtered; and columns that files have of one name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_lab.errors import LabError
from moe_lab.questions.items import Items, read_items
from moe_lab.questions.spec import OutcomesSpec

QUESTIONS = "id,question\n" + "".join(f"{n},Question {n}?\n" for n in range(4))


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path, items: Any, join: Any = ()) -> Items:
    data = {"kind": "outcomes", "name": "t", "items": items, "join": join, "group": "g"}
    data["candidates"] = [{"name": "a", "cost": 1}]
    return read_items(OutcomesSpec.model_validate_json(json.dumps(data)), folder)


def refusal(folder: Path, items: Any, join: Any = (), column: str | None = None) -> str:
    with pytest.raises(LabError) as error:
        read(folder, items, join).column(column or "nothing is wrong")
    assert "\n" not in str(error.value)
    return str(error.value)


def outcomes(values: str, column: str = "correct") -> str:
    return f"id,{column}\n" + "".join(f"{n},{value}\n" for n, value in enumerate(values))


ITEMS = {"path": "base.csv", "key": "id"}
BOTH = [{"path": "ma.csv", "key": "id"}, {"path": "mb.csv.gz.csv", "key": "id", "name": "mb"}]


def test_a_column_that_two_files_have_is_named_with_its_file(tmp_path: Path) -> None:
    write(tmp_path, {"base.csv": QUESTIONS, "ma.csv": outcomes("1001"), "mb.csv.gz.csv": outcomes("0101")})
    told = refusal(tmp_path, ITEMS, BOTH, "correct")
    assert told == (
        '"correct" is a column of two files, and they differ (ma.csv:2 and mb.csv.gz.csv:2); '
        'name it with its file: "ma.correct" or "mb.correct"'
    )
    found = read(tmp_path, ITEMS, BOTH)
    assert found.column("ma.correct").values == list("1001")
    assert found.column("mb.correct").values == list("0101")
    assert found.column("id").values == list("0123")


def test_a_column_that_files_agree_on_needs_no_name(tmp_path: Path) -> None:
    rows = [{"id": n, "x": n / 2, "y": None} for n in range(4)]
    write(tmp_path, {"base.csv": "id,x,y\n0,0,\n1,0.5,\n2,1,\n3,1.5,\n"})
    write(tmp_path, {"more.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    found = read(tmp_path, ITEMS, [{"path": "more.jsonl", "key": "id"}])
    assert found.column("x").values == ["0", "0.5", "1", "1.5"]
    assert '"base.y" or "more.y"' in refusal(tmp_path, ITEMS, [{"path": "more.jsonl", "key": "id"}], "y")


def test_files_of_one_name_need_another(tmp_path: Path) -> None:
    write(tmp_path, {"base.csv": QUESTIONS, "a/preds.csv": outcomes("1001"), "b/preds.csv": outcomes("0101")})
    join = [{"path": "a/preds.csv", "key": "id"}, {"path": "b/preds.csv", "key": "id"}]
    for column in ("correct", "preds.correct"):
        assert "give one of the two files a `name`" in refusal(tmp_path, ITEMS, join, column)
    assert read(tmp_path, ITEMS, [join[0], {**join[1], "name": "b"}]).column("b.correct").values == list("0101")


def test_files_are_stacked_by_rows(tmp_path: Path) -> None:
    files = {f"r/{n}.csv": f"question,a\nof {n}?,{n}\n" for n in (2, 1)}
    write(tmp_path, {**files, "r/gpt-4.1.csv": "question,a\nof 4.1?,4\n"})
    found = read(tmp_path, {"path": ["r/2.csv", "r/*.csv"], "file_column": "topic"})
    assert found.column("a").values == ["2", "1", "4"]
    assert found.column("topic").values == ["2", "1", "gpt-4.1"]
    assert "r/*.txt: no file matches" in refusal(tmp_path, {"path": "r/*.txt"})
    assert 'has a column "a" already' in refusal(tmp_path, {"path": "r/1.csv", "file_column": "a"})


def test_a_pattern_is_looked_for_in_the_folder_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"data/r/1.csv": "question,a\nq,1\n", "lab/empty.csv": ""})
    monkeypatch.setenv("MOE_LAB_OUTCOMES", str(tmp_path / "data"))
    assert len(read(tmp_path / "lab", {"path": "r/*.csv"})) == 1


def test_whoever_stacks_instead_of_joining_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"base.csv": QUESTIONS, "ma.csv": outcomes("1001"), "later.csv": "id,correct\n7,1\n8,1\n"})
    told = refusal(tmp_path, {"path": ["base.csv", "ma.csv"]}, (), "correct")
    assert 'base.csv: no column "correct"' in told
    assert (
        "ma.csv has it: files in one `path` are stacked by rows; to add the columns of a file by key, list it" in told
    )
    told = refusal(tmp_path, {"path": "ma.csv", "key": "id"}, [{"path": "later.csv", "key": "id"}])
    assert "4 items of ma.csv are not in it, first id 0; mend it; to stack its rows below the items'" in told


def test_rows_are_kept_by_what_a_column_says(tmp_path: Path) -> None:
    rows = [
        {"q": n, "split": "test" if n % 2 else "dev", "shots": n // 2, "error": "" if n else None} for n in range(6)
    ]
    write(tmp_path, {"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    write(tmp_path, {"a.csv": "q,split,shots,error\n" + "".join(f"{','.join(map(str, r.values()))}\n" for r in rows)})
    for path, q in (("a.jsonl", int), ("a.csv", str)):
        found = read(tmp_path, {"path": path, "where": {"split": "test", "shots": [0, 2]}})
        assert found.column("q").values == [q(1), q(5)]
    assert len(read(tmp_path, {"path": "a.jsonl", "where": {"error": None}})) == 6
    told = refusal(tmp_path, {"path": "a.csv", "where": {"split": "tset"}})
    assert 'no row whose split is tset. Did you mean "test"? Available: dev, test' in told
    assert 'no column "spilt". Did you mean "split"?' in refusal(tmp_path, {"path": "a.csv", "where": {"spilt": 1}})
    assert "cannot be compared" in refusal(tmp_path, {"path": "a.jsonl", "where": {"shots": True}})


def test_a_long_table_is_joined_once_for_each_candidate(tmp_path: Path) -> None:
    rows = [
        f"{n},{model},{turn},{n + turn + 10 * (model == 'b')}\n" for n in range(4) for model in "ab" for turn in (1, 2)
    ]
    write(tmp_path, {"base.csv": QUESTIONS, "judged.csv": "id,model,turn,score\n" + "".join(rows)})
    entry = {"path": "judged.csv", "key": "id"}
    join = [{**entry, "name": model, "where": {"model": model, "turn": 1}} for model in "ab"]
    found = read(tmp_path, ITEMS, join)
    assert found.column("a.score").values == list("1234")
    assert found.column("b.score").values == ["11", "12", "13", "14"]
    told = refusal(tmp_path, ITEMS, [{**entry, "where": {"model": "a"}}])
    assert f"{tmp_path}/judged.csv:3: id 0 is there twice, first at {tmp_path}/judged.csv:2" in told
    assert "keep one of them with `where`" in told


@pytest.mark.parametrize(
    ("name", "text", "drop"),
    [
        ("drop.txt", "1\r\n3\n\n9\n", "drop.txt"),
        ("drop.csv", "id,why\n1,x\n3,x\n9,x\n", "drop.csv"),
        ("drop.jsonl", '{"leaked": 1}\n{"leaked": 3.0}\n{"leaked": "9"}\n', {"path": "drop.jsonl", "key": "leaked"}),
    ],
)
def test_rows_are_dropped_by_their_keys(tmp_path: Path, name: str, text: str, drop: Any) -> None:
    write(tmp_path, {"base.csv": QUESTIONS, name: text, "all.txt": "0\n1\n2\n3\n"})
    found = read(tmp_path, {**ITEMS, "drop": drop})
    assert found.column("id").values == ["0", "2"]
    assert found.notes == [
        f"{tmp_path / name}: 1 of 3 keys to drop are no id of base.csv",
        f"{tmp_path / name}: 2 of 4 rows were dropped",
    ]
    assert "drops every row" in refusal(tmp_path, {**ITEMS, "drop": "all.txt"})


def test_keys_are_texts_or_numbers(tmp_path: Path) -> None:
    write(tmp_path, {"base.csv": QUESTIONS, "a.jsonl": "".join(f'{{"id": {n}.0, "a": {n}}}\n' for n in range(4))})
    assert read(tmp_path, ITEMS, [{"path": "a.jsonl", "key": "id"}]).column("a").values == [0, 1, 2, 3]
    write(tmp_path, {"b.jsonl": '{"id": null, "a": 1}\n'})
    assert "b.jsonl:1: id: null is no key" in refusal(tmp_path, ITEMS, [{"path": "b.jsonl", "key": "id"}])
    write(tmp_path, {"twice.csv": "id,question\n1,p\n1,q\n"})
    [note] = read(tmp_path, {"path": "twice.csv", "key": "id"}, [{"path": "a.jsonl", "key": "id"}]).notes
    assert "1 of 2 items share their id with another one" in note


def test_a_key_that_some_objects_leave_out_is_null(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": '{"scores": {"a": 1, "b": 0}}\n{"scores": {"b": 1}}\n{"scores": null}\n'})
    found = read(tmp_path, {"path": "a.jsonl"})
    assert found.column("scores.a").values == [1, None, None]
    assert 'no column "scores.c"' in refusal(tmp_path, {"path": "a.jsonl"}, (), "scores.c")
