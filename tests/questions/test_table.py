"""Item tables on disk and in parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.questions.table import load_items, make_table, save_items
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
