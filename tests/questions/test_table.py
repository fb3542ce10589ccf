"""Item tables on disk and in parts."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.questions.table import FILE, load_items, make_table, save_items
from tests.questions.synthetic import ladder_table, word_table


@pytest.mark.parametrize("table", [word_table(20), ladder_table(20)], ids=["text and group", "numbers"])
def test_a_saved_table_comes_back(tmp_path: Path, table) -> None:
    save_items(table, tmp_path / "items.parquet", {"from": "a test"})
    again = load_items(tmp_path / "items.parquet")
    assert again.digest == table.digest
    for field in dataclasses.fields(table):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(table, field.name))


def test_the_digest_sees_every_part() -> None:
    table = word_table(20)
    turned = table.outcome_NC.copy()
    turned[3, 1] = 1 - turned[3, 1]
    assert table.text_N is not None
    changed = [
        dataclasses.replace(table, outcome_NC=turned),
        dataclasses.replace(table, cost_NC=table.cost_NC * 2),
        dataclasses.replace(table, text_N=("?", *table.text_N[1:])),
        dataclasses.replace(table, groups=("up", "down")),
        dataclasses.replace(table, group_N=1 - table.group_N),
        dataclasses.replace(table, outcome="loss"),
    ]
    assert len({table.digest, *(other.digest for other in changed)}) == 7
    assert word_table(20).digest == table.digest


def test_some_rows_and_some_candidates() -> None:
    table = word_table(20)
    part = table.rows(np.array([4, 2])).only(["large"])
    assert part.text_N == (table.text_N[4], table.text_N[2])
    assert part.outcome_NC[:, 0].tolist() == table.outcome_NC[[4, 2], 1].tolist()
    assert part.cost_C.tolist() == [10.0]
    with pytest.raises(LabError, match='unknown candidate "larg". Did you mean "large"?'):
        table.only(["larg"])


def test_losses_are_turned_into_quality() -> None:
    table = make_table("t", ladder_table(5).candidates[:1], [[0.5], [2.0]], [1.0], outcome="loss", group=["a", "b"])
    assert table.quality_NC.tolist() == [[-0.5], [-2.0]]
    assert not table.is_probability


def test_what_is_no_item_table_is_refused_in_one_line(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "text.parquet").write_text("hello")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name in ("text.parquet", "other.parquet", "missing.parquet"):
        with pytest.raises(LabError, match="not an item table"):
            load_items(tmp_path / name)
    save_items(word_table(5), tmp_path / "items.parquet")
    read = pq.read_table(tmp_path / "items.parquet")
    pq.write_table(read.drop_columns(["cost/large"]), tmp_path / "cut.parquet")
    with pytest.raises(LabError, match="it lacks cost/large"):
        load_items(tmp_path / "cut.parquet")


def _written(path: Path, change: Callable[[Any], Any], **header: Any) -> Path:
    """A saved table with something changed in its columns or its header."""
    import pyarrow.parquet as pq

    save_items(word_table(5), path)
    read = change(pq.read_table(path))
    if header:
        told = json.loads(read.schema.metadata[FILE.key]) | header
        read = read.replace_schema_metadata({FILE.key: json.dumps(told)})
    pq.write_table(read, path)
    return path


def _latin1(read: Any) -> Any:
    import pyarrow as pa

    raw = [b"whole", b"whole", "caf\u00e9".encode("latin-1"), b"whole", b"whole"]
    text = pa.array(raw, pa.binary()).view(pa.string())  # Arrow does not look
    return _with(read, "text", text)


def _with(read: Any, name: str, values: Any) -> Any:
    import pyarrow as pa

    return read.set_column(read.column_names.index(name), name, values if isinstance(values, pa.Array) else [values])


@pytest.mark.parametrize(
    ("change", "header", "reason"),
    [
        (_latin1, {}, 'the column "text" is not UTF-8 in row 3'),
        (lambda read: _with(read, "text", ["q", "q", "q", None, "q"]), {}, 'the column "text" is null in row 4'),
        (lambda read: _with(read, "text", [1, 2, 3, 4, 5]), {}, 'the column "text" is of int64, not of text'),
        (lambda read: _with(read, "cost/large", list("abcde")), {}, 'the column "cost/large" is of string'),
        (lambda read: _with(read, "group", [0, 1, None, 0, 1]), {}, 'the column "group" has 1 nulls'),
        (lambda read: _with(read, "group", [0, 1, 2, 0, 1]), {}, "its groups are 0 to 2, and 2 are named"),
        (lambda read: read.append_column("text", read.column("text")), {}, 'it has the column "text" twice'),
        (lambda read: read, {"candidates": [{"nom": "small"}]}, "its header is not whole"),
        (lambda read: read, {"outcome": "points"}, "its header is not whole: outcome points"),
        (lambda read: read, {"groups": None}, "its header is not whole"),
    ],
)
def test_a_table_that_is_not_whole_says_where(tmp_path: Path, change, header: dict, reason: str) -> None:
    path = _written(tmp_path / "items.parquet", change, **header)
    with pytest.raises(LabError) as error:
        load_items(path)
    assert str(error.value).startswith(f"{path}: not an item table (")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_byte_is_never_a_traceback_nor_another_number(tmp_path: Path) -> None:
    table, path, dice = word_table(4), tmp_path / "items.parquet", random.Random(0)
    save_items(table, path)
    whole, refused = path.read_bytes(), 0
    for at in dice.sample(range(len(whole)), 600):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            again = load_items(path)
        except LabError:
            refused += 1
        else:  # the header's names have no checksum
            np.testing.assert_array_equal(again.outcome_NC, table.outcome_NC)
            np.testing.assert_array_equal(again.cost_NC, table.cost_NC)
            assert again.text_N == table.text_N
    assert refused > 300


@pytest.mark.parametrize("what", ["text", "group"])
@pytest.mark.parametrize(
    ("value", "reason"), [(None, "is None"), (float("nan"), "is nan"), ("\ud83d", "surrogate pair")]
)
def test_what_a_router_reads_is_text(what: str, value: Any, reason: str) -> None:
    how: dict[str, Any] = {"text": ["a", "b"], "group": ["x", "y"], what: ["a", value]}
    with pytest.raises(LabError, match=f"t: {what} of item 1 .*{reason}"):
        make_table("t", ladder_table(5).candidates[:1], [[0.0], [1.0]], [1.0], **how)
