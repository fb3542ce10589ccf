from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.config import load_yaml, parse_yaml, to_yaml
from moe_lab.errors import LabError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("3.", 3.0),
        (".inf", float("inf")),
        ("42", 42),
        ("-7", -7),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
    ],
)
def test_plain_scalars_have_the_type_of_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(f"key: {text}", "test")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    ["on", "off", "yes", "no", "y", "N", "2026-11-21", "1_000", "12:30:45", "1e", "e4", ".", "+", "0b1"],
)
def test_what_yaml_1_1_would_convert_stays_text(text: str) -> None:
    assert parse_yaml(f"key: {text}", "test") == {"key": text}


def test_keys_are_text() -> None:
    assert parse_yaml("1: a\non: b\ntrue: c\n~: d", "test") == {"1": "a", "on": "b", "true": "c", "~": "d"}


def test_quotes_make_text() -> None:
    assert parse_yaml("""["1", '1e-4', "null"]""", "test") == ["1", "1e-4", "null"]


@pytest.mark.slow
@given(PLAIN)
def test_what_is_written_reads_back_the_same(data: Any) -> None:
    written = to_yaml({"data": data})
    assert parse_yaml(written, "test") == {"data": data}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\nb: 2\na: 3", 3, 'key "a" is given twice'),
        ("a:\n  x: 1\n  x: 2", 3, 'key "x" is given twice'),
        ("a: [1, 2", 1, "expected ',' or ']'"),
        ("a: b: c", 1, 'put quotes around text with ": " in it'),
        ("a: !!python/name:os.system", 1, "tag tag:yaml.org,2002:python/name:os.system is not supported"),
        ("x: 1\n? [1, 2]\n: 3", 2, "a key must be plain text"),
        ("a: &x [*x]", 1, "recursive"),
        ("a: 1\n---\nb: 2", 2, "expected a single document"),
        ("a: *b", 1, "undefined alias"),
    ],
)
def test_an_invalid_text_names_file_line_and_reason(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(LabError) as error:
        load_yaml(path)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- 1\n- 2\n", "got a list"),
        (b"hello\n", "got a single value"),
        ("name: é".encode("latin-1"), "not UTF-8 (byte 6)"),
        ("name: x".encode("utf-16"), "not UTF-8"),
        (b"a: \x01", "not valid YAML"),
        (b"a: " + b"9" * 5000, "not valid YAML"),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(LabError) as error:
        load_yaml(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"nowhere\.yaml: no such file"):
        load_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(LabError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert load_yaml(path) == {"name": "x"}


def test_aliases_that_stand_for_too_much_are_refused_before_they_are_written_out() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, 12)]
    with pytest.raises(LabError, match="aliases stand for more than 1,000,000 values"):
        parse_yaml("\n".join(lines), "bomb.yaml")
    assert parse_yaml("a: &a [1, 2]\nb: *a", "x") == {"a": [1, 2], "b": [1, 2]}


def test_a_merge_key_is_refused_by_name() -> None:
    with pytest.raises(LabError, match=r"x:2: not valid YAML: merge keys \(<<\) are not supported"):
        parse_yaml("a: &a {b: 1}\nc: {<<: *a}", "x")
    assert parse_yaml('"<<": 1', "x") == {"<<": 1}
