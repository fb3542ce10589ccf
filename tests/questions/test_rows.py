"""One file of somebody else's: what it says twice, leaves open or has lost is refused in one line."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from moe_lab.errors import LabError
from moe_lab.questions.rows import ABSENT, reach, read_rows


def cells(path: Path, **how: Any) -> list[dict[str, Any]]:
    return [row.cells for row in read_rows(path, **how)[0]]


def refusal(path: Path, **how: Any) -> str:
    with pytest.raises(LabError) as error:
        read_rows(path, **how)
    assert "\n" not in str(error.value)
    return str(error.value)


def sixty(quoted: dict[int, str], delimiter: str = ",") -> str:
    """60 rows whose last column is a question; some have other text there."""
    rows = [["math", "1", "0", quoted.get(n, f"Question {n} of the ledger?")] for n in range(60)]
    return "\n".join(delimiter.join(row) for row in [["subject", "small", "large", "question"], *rows]) + "\n"


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_header_that_names_a_column_twice(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"table.{ending}"
    path.write_text("id,small,large,small\n1,1,1,0\n".replace(",", "," if ending == "csv" else "\t"))
    assert f'{path}: the header names the column "small" 2 times' in refusal(path)


def test_empty_columns_beside_a_table_are_no_names(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("id,a,,\n1,x,,\n")
    assert cells(path) == [{"id": "1", "a": "x"}]
    path.write_text(",a\n0,x\n")
    assert cells(path) == [{"": "0", "a": "x"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("row", ['{"small": 1, "small": 0}', '{"scores": {"small": 1, "small": 0}}'])
def test_an_object_that_names_a_key_twice(tmp_path: Path, name: str, row: str) -> None:
    path = tmp_path / name
    path.write_text(row if name == "a.jsonl" else f"[{row}]")
    assert 'the key "small" is there twice in one object' in refusal(path)


def test_a_quotation_mark_that_nothing_closes(tmp_path: Path) -> None:
    opened = {10: '"Yes or no? asked the clerk', 30: '"Stop, or go? asked the guard'}
    path = tmp_path / "table.csv"
    for marks in (opened, {10: opened[10]}):
        path.write_text(sixty(marks))
        assert f"{path}:12: a quotation mark opens a cell in this row and is not closed" in refusal(path)
    path = tmp_path / "table.tsv"
    path.write_text(sixty(opened, "\t"))
    rows, [note] = read_rows(path)
    assert len(rows) == 60
    assert [rows[n].cells["question"] for n in opened] == list(opened.values())
    assert "read without quoting" in note


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_quoted_cell_that_swallowed_rows_is_said(tmp_path: Path, newline: str) -> None:
    """The second mark ends a cell, so that all of it is sound CSV."""
    marks = {10: '"Yes or no? asked the clerk', 30: 'The guard asked: stop or go"'}
    path = tmp_path / "table.csv"
    path.write_text(sixty(marks), newline=newline)
    rows, [note] = read_rows(path)
    assert len(rows) == 40
    assert f"{path}:12: one quoted cell holds 20 line breaks, and what is between them looks like rows" in note
    path = tmp_path / "table.tsv"
    path.write_text(sixty(marks, "\t"), newline=newline)
    assert len(read_rows(path)[0]) == 60


@pytest.mark.parametrize(("columns", "swallowed", "said"), [(3, 1, False), (3, 2, True), (4, 1, True), (2, 2, False)])
def test_three_separators_where_those_of_rows_would_fall_are_evidence(
    tmp_path: Path, columns: int, swallowed: int, said: bool
) -> None:
    """Of a row that is swallowed as a whole all, and as many again of the two that the cell joins."""
    row = ",".join(["word"] * columns)
    cell = "\n".join(['"word', *[row] * (swallowed - 1), ",".join(["word"] * (columns - 1) + ['word"'])])
    path = tmp_path / "table.csv"
    path.write_text(f"{','.join(f'c{n}' for n in range(columns))}\n{','.join(['word'] * (columns - 1))},{cell}\n")
    rows, notes = read_rows(path)
    assert len(rows) == 1
    assert ["looks like rows" in note for note in notes] == [True] * said


def test_quoted_cells_with_line_breaks_are_cells(tmp_path: Path) -> None:
    prose = 'Which are right?\nred, green, blue, or black\n\n"All", of, course, four'
    doubled = prose.replace('"', '""')
    for ending, delimiter in (("csv", ","), ("tsv", "\t")):
        path = tmp_path / f"table.{ending}"
        rows = (
            ["subject", "small", "large", "question"],
            ["math", "1", "0", f'"{doubled}"'],
            ["law", "0", "1", "last"],
        )
        path.write_text("".join(delimiter.join(row) + "\n" for row in rows))
        read, notes = read_rows(path)
        assert [row.cells["question"] for row in read] == [prose, "last"]
        assert [row.where for row in read] == [f"{path}:2", f"{path}:6"]
        assert notes == []


def test_prose_with_as_many_commas_as_a_row_is_prose(tmp_path: Path) -> None:
    """In a row that was swallowed there are numbers where this row has them."""
    path = tmp_path / "table.csv"
    path.write_text('subject,small,large,question\nmath,1,0,"Which are right?\nred, green, blue, or black"\n')
    rows, notes = read_rows(path)
    assert (len(rows), notes) == (1, [])


def test_json_in_its_shapes(tmp_path: Path) -> None:
    rows = [{"id": "x", "a": 1}, {"id": "y", "a": None}]
    shapes: list[tuple[Any, dict[str, Any]]] = [
        (rows, {}),
        ({"x": {"a": 1}, "y": {"a": None}}, {"key": "id"}),
        ({"x": {"id": "x", "a": 1}, "y": {"id": "y", "a": None}}, {"key": "id"}),
        ({"id": ["x", "y"], "a": [1, None]}, {}),
        ({"about": "us", "data": {"rows": rows}}, {"inside": "data.rows"}),
    ]
    for n, (value, how) in enumerate(shapes):
        path = tmp_path / f"{n}.json"
        path.write_text(json.dumps(value, indent=n % 2 or None))
        assert cells(path, **how) == rows, value
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cells(tmp_path / "lines.json") == rows
    (tmp_path / "packed.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert cells(tmp_path / "packed.json.gz") == rows


@pytest.mark.parametrize(
    ("text", "how", "reason"),
    [
        ("[1]", {}, "row 1 is a int, not an object"),
        ('{"data": {"a": 1}, "n": 1}', {}, "write `rows: NAME` if they are further inside. Available: data, n"),
        ('{"data": []}', {"inside": "date"}, "`rows: date` is not in it"),
        ('{"a": [1], "b": [1, 2]}', {}, "columns of one length"),
        ("[{]", {}, "not JSON"),
    ],
)
def test_json_that_is_no_table(tmp_path: Path, text: str, how: dict, reason: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert reason in refusal(tmp_path / "a.json", **how)


def test_what_else_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("a")
    assert "use .csv, .tsv, .jsonl, .ndjson or .json" in refusal(tmp_path / "a.xlsx")
    (tmp_path / "a.csv").write_text("a,b\n1,\0\n")
    assert "holds NUL bytes" in refusal(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    assert "leave it out for .csv" in refusal(tmp_path / "b.csv", inside="data")


def test_a_damaged_gz_is_refused_whatever_its_library_raises(tmp_path: Path) -> None:
    text = "".join(f"what is {n} of {random.Random(n).random()}?,1,0\n" for n in range(40))
    whole = gzip.compress(f"question,a,b\n{text}".encode(), mtime=0)
    path, dice, refused = tmp_path / "a.csv.gz", random.Random(0), 0
    path.write_bytes(whole)
    expected = cells(path)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            assert cells(path) == expected  # a byte that means nothing, such as the time
        except LabError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > len(whole) * 0.9


def test_names_reach_into_objects_and_lists() -> None:
    scores = {"gpt-4.1": 1, "small": 0, "none": None}
    row = {"scores": scores, "turns": ["first", {"text": "second"}], "a.b": 2, "a": {"b": 3}}
    names = ("scores.gpt-4.1", "scores.none", "turns.0", "turns.1.text", "a.b")
    assert [reach(row, name) for name in names] == [1, None, "first", "second", 2]
    for name in ("scores.large", "turns.2", "turns.first", "scores.small.x", "scores.none.x", "turns.-1"):
        assert reach(row, name) is ABSENT, name
