"""JSON Lines of other people."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lab.data.json_lines import json_rows
from moe_lab.errors import LabError

PATH = Path("rows.jsonl")


def test_lines_are_counted_and_empty_ones_passed_over() -> None:
    text = '{"a": 1}\r\n\n{"a": {"b": 1, "c": 1}}\n'
    assert list(json_rows(PATH, text)) == [(1, {"a": 1}), (3, {"a": {"b": 1, "c": 1}})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "rows.jsonl:2: not JSON"),
        ("[1]", "rows.jsonl:2: a list, not an object"),
        ('{"text": "a", "text": "b"}', 'rows.jsonl:2: the key "text" is there twice in one object'),
        ('{"in": [{"x": 1, "x": 1}]}', 'rows.jsonl:2: the key "x" is there twice in one object'),
        ("[" * 100_000, "rows.jsonl:2: not JSON"),
        ("1" * 5000, "rows.jsonl:2: "),
    ],
)
def test_a_line_that_is_no_row_is_named(line: str, reason: str) -> None:
    with pytest.raises(LabError) as error:
        list(json_rows(PATH, f'{{"a": 1}}\n{line}\n'))
    assert str(error.value).startswith(reason)
    assert "\n" not in str(error.value)
