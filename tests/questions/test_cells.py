"""Cells as JSON and spreadsheets write them, and none as only Python reads them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from moe_lab.errors import LabError
from moe_lab.questions.cells import read_number, read_text, same_answer


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[("1", 1), (" -0.5 ", -0.5), (".5", 0.5), ("5.", 5), ("1e-3", 1e-3), ("+2E2", 200)],
        *[("TRUE", 1), (False, 0), (3, 3), (2.5, 2.5)],
        *[("-inf", -math.inf), ("Infinity", math.inf), (10**400, math.inf)],
    ],
)
def test_numbers(value: Any, number: float) -> None:
    assert read_number(value, "t.csv:2", "a") == number


@pytest.mark.parametrize("value", ["", "NaN", "NA", "n/a", "null", "None", None, math.nan, "-nan"])
def test_nothing_is_no_number(value: Any) -> None:
    assert math.isnan(read_number(value, "t.csv:2", "a"))


@pytest.mark.parametrize("value", ["1_0", "٣", "１", "0,5", "0x10", "5 %", "B", "1e", ".", "infin", [1], {"a": 1}])
def test_what_only_python_reads_is_refused_by_cell(value: Any) -> None:
    with pytest.raises(LabError, match=r't\.csv:2: a: ".*" is not a number, true or false'):
        read_number(value, "t.csv:2", "a")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (3, 3.0, True),
        ("3", "3.0", False),  # text stays text
        ("3.0", 3, True),
        ("B", 3, False),
        ("1_0", 10, False),
        ("NA", "NA", True),
        ("", "", True),
        (None, None, False),
        (math.nan, math.nan, False),
        ("true", True, True),
        ("False", True, False),
        (2**53 + 1, str(2**53), False),
        ([1, "a"], [1, "a"], True),
    ],
)
def test_answers_are_compared_by_what_they_are(one: Any, other: Any, same: bool) -> None:
    assert same_answer(one, other) is same
    assert same_answer(other, one) is same


@pytest.mark.parametrize(("one", "other"), [(True, 1), ([3], 3), ({"a": 1}, "a")])
def test_answers_that_cannot_be_compared(one: Any, other: Any) -> None:
    with pytest.raises(LabError, match="cannot be compared; write both in one type"):
        same_answer(one, other)


@pytest.mark.parametrize(
    ("value", "text"),
    [("q", "q"), ("", ""), (3, "3"), (True, "true"), (["x", 2], "x\n2"), ([], ""), (None, None), (["x", None], None)],
)
def test_texts_never_hold_the_name_of_a_python_value(value: Any, text: str | None) -> None:
    assert read_text(value, "t.jsonl:1", "question") == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"text": "q"}, "holds an object; name what is in it, such as question.text"),
        ([{"role": "user"}], "holds a list of objects or lists"),
        ("cut \ud83d", 't.jsonl:1: column "question": half of a surrogate pair at character 4'),
        (["whole", "\ud83d"], "half of a surrogate pair at character 6"),
    ],
)
def test_texts_that_are_none(value: Any, reason: str) -> None:
    with pytest.raises(LabError) as error:
        read_text(value, "t.jsonl:1", "question")
    assert reason in str(error.value)
