"""Outcome tables keep what they are given, and what is no outcome table is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.errors import LabError
from moe_lab.routing.example import SPACE
from moe_lab.routing.outcomes import FILE, OutcomeTable, load_outcomes, save_outcomes

ARRAYS = ("loss_NSC", "hidden_NSD", "tokens_NS", "segment_ids_NS", "bytes_NS", "group_N")


def make_table(seed: int = 0, sequences: int = 3, length: int = 5, width: int = 2) -> OutcomeTable:
    rng = np.random.default_rng(seed)
    return OutcomeTable(
        space=SPACE,
        groups=("code", "prose"),
        loss_NSC=rng.gamma(2.0, size=(sequences, length, len(SPACE))).astype(np.float32),
        hidden_NSD=rng.normal(size=(sequences, length, width)).astype(np.float32),
        tokens_NS=rng.integers(0, 257, (sequences, length)).astype(np.int32),
        segment_ids_NS=rng.integers(0, 3, (sequences, length)).astype(np.int32),
        bytes_NS=rng.integers(0, 5, (sequences, length)).astype(np.int32),
        group_N=rng.integers(0, 2, sequences).astype(np.int32),
    )


@given(
    seed=st.integers(0, 2**32 - 1), sequences=st.integers(1, 4), length=st.integers(1, 6), width=st.sampled_from((0, 3))
)
@settings(max_examples=20)
def test_a_table_comes_back_as_it_was_written(tmp_path_factory, seed, sequences, length, width) -> None:
    table, path = make_table(seed, sequences, length, width), tmp_path_factory.mktemp("table") / "outcomes.parquet"
    save_outcomes(table, path, {"split": "validation"})
    again = load_outcomes(path)
    assert again.space == table.space
    assert again.groups == table.groups
    for name in ARRAYS:
        written, read = getattr(table, name), getattr(again, name)
        assert read.dtype == written.dtype, name
        np.testing.assert_array_equal(read, written, err_msg=name)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_says_what_it_was_measured_on_and_names_its_columns(tmp_path: Path) -> None:
    table, path = make_table(), tmp_path / "outcomes.parquet"
    save_outcomes(table, path, {"split": "validation", "trunk": "sha256-1"})
    read = pq.read_table(path)
    assert json.loads(read.schema.metadata[FILE.key])["provenance"] == {"split": "validation", "trunk": "sha256-1"}
    np.testing.assert_array_equal(read["loss/east/two:32"], table.loss_NSC[..., 3].reshape(-1))
    np.testing.assert_array_equal(read["sequence"], np.repeat(np.arange(3), 5))
    np.testing.assert_array_equal(read["position"], np.tile(np.arange(5), 3))
    np.testing.assert_array_equal(read["group"], np.repeat(table.group_N, 5))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_loss_that_counts_must_be_finite(tmp_path: Path, broken: float) -> None:
    table, path = make_table(), tmp_path / "outcomes.parquet"
    row, place = np.argwhere(table.mask_NS)[-1]
    table.loss_NSC[row, place, 4] = broken
    save_outcomes(table, path, {})
    with pytest.raises(LabError, match=r"outcomes.parquet: some losses are not finite; measure the table again"):
        load_outcomes(path)


def test_a_loss_that_does_not_count_may_be_anything(tmp_path: Path) -> None:
    table, path = make_table(), tmp_path / "outcomes.parquet"
    row, place = np.argwhere(~table.mask_NS)[0]
    table.loss_NSC[row, place] = np.nan
    save_outcomes(table, path, {})
    assert np.isnan(load_outcomes(path).loss_NSC[row, place]).all()


def _write_nothing(path: Path) -> None:
    pass


def _write_text(path: Path) -> None:
    path.write_text("loss\n1.0\n")


def _write_other_table(path: Path) -> None:
    pq.write_table(pa.table({"loss": [1.0]}), path)


def _write_half(path: Path) -> None:
    save_outcomes(make_table(), path, {})
    path.write_bytes(path.read_bytes()[:-200])


def _write_without_a_column(path: Path) -> None:
    save_outcomes(make_table(), path, {})
    pq.write_table(pq.read_table(path).drop_columns(["segment"]), path)


def _write_without_a_length(path: Path) -> None:
    save_outcomes(make_table(), path, {})
    read = pq.read_table(path)
    header = json.loads(read.schema.metadata[FILE.key])
    del header["sequence_length"]
    pq.write_table(read.replace_schema_metadata({FILE.key: json.dumps(header)}), path)


def _write_half_a_sequence(path: Path) -> None:
    save_outcomes(make_table(), path, {})
    pq.write_table(pq.read_table(path).slice(0, 3), path)


def _write_loose_features(path: Path) -> None:
    save_outcomes(make_table(), path, {})
    read = pq.read_table(path)
    loose = read.column("hidden").cast(pa.list_(pa.float32()))
    pq.write_table(read.set_column(read.column_names.index("hidden"), "hidden", loose), path)


@pytest.mark.parametrize(
    "write",
    [
        *(_write_nothing, _write_text, _write_other_table, _write_half, _write_without_a_column),
        *(_write_without_a_length, _write_half_a_sequence, _write_loose_features),
    ],
)
def test_what_is_no_outcome_table_is_refused(tmp_path: Path, write) -> None:
    path = tmp_path / "outcomes.parquet"
    write(path)
    with pytest.raises(LabError, match=r"outcomes.parquet: not an outcome table .*; measure it again"):
        load_outcomes(path)


def test_another_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.parquet"
    save_outcomes(make_table(), path, {})
    read = pq.read_table(path)
    header = json.loads(read.schema.metadata[FILE.key]) | {"format": 1}
    pq.write_table(read.replace_schema_metadata({FILE.key: json.dumps(header)}), path)
    with pytest.raises(LabError, match="outcome table format 1, this version reads 2"):
        load_outcomes(path)


def test_sequences_that_are_all_padding_are_left_out() -> None:
    table = make_table(sequences=4)
    table.segment_ids_NS[[0, 2]] = 0
    table.segment_ids_NS[[1, 3], 0] = 1
    counted = table.counted()
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(counted, name), getattr(table, name)[[1, 3]], err_msg=name)
    whole = dataclasses.replace(table, segment_ids_NS=np.ones_like(table.segment_ids_NS))
    assert len(whole.counted().group_N) == 4


def test_leaving_a_module_out_takes_its_candidates_and_nothing_else() -> None:
    table = make_table()
    smaller = table.without(("east/two",))
    assert smaller.space.names == ("trunk", "north/one:16", "south/three:16", "south/three:32", "south/three:64")
    np.testing.assert_array_equal(smaller.loss_NSC, table.loss_NSC[..., [0, 1, 4, 5, 6]])
    for name in ARRAYS[1:]:
        np.testing.assert_array_equal(getattr(smaller, name), getattr(table, name), err_msg=name)


def test_a_group_is_at_home_with_the_module_that_loses_least_on_its_counted_tokens_at_full_width() -> None:
    table = make_table(sequences=4)
    table.group_N[:] = (0, 1, 0, 1)
    table.segment_ids_NS[:] = (1, 1, 1, 1, 0)
    table.loss_NSC[:] = 2.0
    widest = table.space.widest_E
    table.loss_NSC[table.group_N == 0, :, widest[2]] = 1.0
    table.loss_NSC[table.group_N == 0, :, widest[1]] = 3.0
    table.loss_NSC[table.group_N == 1, :, widest[1]] = 1.5
    table.loss_NSC[:, :, widest[0]] = np.where(table.mask_NS, 2.5, -9.0)  # best only where nothing counts
    table.loss_NSC[:, :, 4] = 0.5  # a narrow rung of the third module
    assert table.own_G.tolist() == [2, 1]
