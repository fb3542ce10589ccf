"""From anyone's CSV or JSON Lines files, by a config of kind `outcomes`, to an item table that passed its checks."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.config import load_config
from moe_lab.data.json_lines import json_rows
from moe_lab.errors import LabError, did_you_mean
from moe_lab.questions.checks import check_items
from moe_lab.questions.spec import CandidateSpec, OutcomesSpec, TableFile
from moe_lab.questions.table import ItemCandidate, ItemTable, load_items, make_table

FOLDER = "MOE_LAB_OUTCOMES"
_RIGHT = {"true": 1.0, "false": 0.0}
_MISSING = {"", "nan", "na", "n/a", "null", "none"}

Row = dict[str, Any]


def read_table(path: Path) -> tuple[ItemTable, list[str]]:
    """The table of a config of kind `outcomes`, or of a saved `.parquet`, and what its checks warn of.

    Raises:
        LabError: a file or column is missing, or a check refuses the table.
    """
    if path.suffix == ".parquet":
        table = load_items(path)
        return table, check_items(table)
    spec = load_config(path, kind="outcomes")
    assert isinstance(spec, OutcomesSpec)
    return map_table(spec, path.parent)


def map_table(spec: OutcomesSpec, base: Path) -> tuple[ItemTable, list[str]]:
    """The table that a mapping describes, and what its checks warn of."""
    rows, where = _joined(spec, base)
    outcome_NC = np.array([[_outcome(row, candidate, spec, where) for candidate in spec.candidates] for row in rows])
    cost_NC = np.array([[_cost(row, candidate, where) for candidate in spec.candidates] for row in rows])
    kept, warnings = _without_missing(outcome_NC, cost_NC, spec, where)
    rows = [rows[i] for i in kept]
    _require_columns(rows, (*spec.text, *spec.numbers, *([spec.group] if spec.group else [])), where)
    table = make_table(
        spec.name,
        tuple(ItemCandidate(name=c.name, size=c.size, family=c.family) for c in spec.candidates),
        outcome_NC[kept],
        cost_NC[kept],
        outcome=spec.outcome,
        cost_unit=spec.cost_unit,
        outcome_unit=spec.outcome_unit,
        text=["\n".join(_lines(row[column]) for column in spec.text) for row in rows] if spec.text else None,
        group=[row[spec.group] for row in rows] if spec.group else None,
        numbers={column: [_number(row[column], where, column) for row in rows] for column in spec.numbers},
    )
    return table, warnings + check_items(table, refuse_duplicates=spec.duplicates == "refuse")


def find_file(path: str, base: Path) -> Path:
    """A table's file: beside the YAML file, else in the folder that MOE_LAB_OUTCOMES names."""
    beside, folder = base / Path(path).expanduser(), os.environ.get(FOLDER)
    if beside.is_file():
        return beside
    if folder and (Path(folder) / path).is_file():
        return Path(folder) / path
    looked = f"{beside} nor in {FOLDER}={folder}" if folder else f"{beside}, and {FOLDER} is not set"
    raise LabError(f"{path}: no such file, neither {looked}; download it, then set {FOLDER} to its folder")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .csv, .tsv, .jsonl or .ndjson file, with or without .gz, as text or JSON values."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    try:
        raw = gzip.open(path, "rb").read() if path.name.endswith(".gz") else path.read_bytes()  # noqa: SIM115
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise LabError(f"{path}: cannot be read as UTF-8 text ({error}); download or convert it again") from error
    if kind in ("csv", "tsv"):
        yield from _delimited(path, text, "\t" if kind == "tsv" else ",")
    elif kind in ("jsonl", "ndjson"):
        yield from (row for _, row in json_rows(path, text))
    else:
        raise LabError(f"{path}: unknown kind of table; use .csv, .tsv, .jsonl or .ndjson, with or without .gz")


def _delimited(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)  # questions with documents in them pass the default of 128 KiB
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    for row in reader:
        if None in row or None in row.values():
            raise LabError(f"{path}:{reader.line_num}: this row has more or fewer cells than the header; mend the file")
        yield row


def _joined(spec: OutcomesSpec, base: Path) -> tuple[list[Row], Path]:
    """The rows of the items' file with the columns of the others added by key, never by order."""
    where = find_file(spec.items.path, base)
    rows = list(read_rows(where))
    if not rows:
        raise LabError(f"{where}: no rows; a router needs items to learn from")
    for file in spec.join:
        other = find_file(file.path, base)
        found = _by_key(other, file, read_rows(other))
        key = spec.items.key
        assert key is not None, "the spec asks for keys where files are joined"
        _require_columns(rows, (key,), where)
        if lost := [str(row[key]) for row in rows if str(row[key]) not in found]:
            raise LabError(f"{other}: {len(lost)} items of {where.name} are not in it, first {key} {lost[0]}; mend it")
        rows = [{**found[str(row[key])], **row} for row in rows]
    return rows, where


def _by_key(path: Path, file: TableFile, rows: Iterator[Row]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        _require_columns([row], (str(file.key),), path)
        key = str(row[str(file.key)])
        if key in found:
            raise LabError(f"{path}: {file.key} {key} is there twice; rows are joined by it, so make it unique")
        found[key] = row
    return found


def _require_columns(rows: Sequence[Row], columns: Sequence[str], where: Path) -> None:
    for row in rows:
        for column in columns:
            if column not in row:
                raise LabError(f'{where}: no column "{column}".{did_you_mean(column, map(str, row))}')


def _outcome(row: Row, candidate: CandidateSpec, spec: OutcomesSpec, where: Path) -> float:
    """The number in a cell; NaN where it is missing."""
    column = candidate.column or candidate.name
    _require_columns([row], [column, *([spec.right_when_equals] if spec.right_when_equals else [])], where)
    if spec.right_when_equals:
        # An answer that could not be parsed is an empty cell, and wrong; so "NA" may be an answer too.
        return float(str(row[column]) == str(row[spec.right_when_equals]))
    return _number(row[column], where, column)


def _cost(row: Row, candidate: CandidateSpec, where: Path) -> float:
    if candidate.cost_column is None:
        assert candidate.cost is not None, "the spec asks for one of the two"
        return candidate.cost
    _require_columns([row], [candidate.cost_column], where)
    return _number(row[candidate.cost_column], where, candidate.cost_column)


def _number(value: Any, where: Path, column: str) -> float:
    if value is None or str(value).strip().lower() in _MISSING:
        return float("nan")
    text = str(value).strip().lower()
    try:
        return _RIGHT[text] if text in _RIGHT else float(text)
    except ValueError:
        raise LabError(
            f'{where}: {column}: "{str(value)[:40]}" is not a number, true or false; name another column, '
            "or use right_when_equals for answers"
        ) from None


def _without_missing(
    outcome_NC: np.ndarray, cost_NC: np.ndarray, spec: OutcomesSpec, where: Path
) -> tuple[np.ndarray, list[str]]:
    """The items that have every outcome and cost, and what to say of the others."""
    missing_NC = np.isnan(outcome_NC) | np.isnan(cost_NC)
    if not missing_NC.any():
        return np.arange(len(outcome_NC)), []
    count, most = int(missing_NC.any(axis=1).sum()), int(missing_NC.sum(axis=0).argmax())
    told = (
        f"{where}: {count} of {len(outcome_NC)} items lack an outcome or a cost, most often of "
        f"{spec.candidates[most].name} ({int(missing_NC[:, most].sum())})"
    )
    if missing_NC[:, most].all():
        raise LabError(f"{told}; it has none at all, so leave that candidate out")
    if spec.missing == "refuse":
        raise LabError(f"{told}; fill them in, or write `missing: drop` to leave those items out")
    kept = np.flatnonzero(~missing_NC.any(axis=1))
    if not len(kept):
        raise LabError(f"{told}; no item has them all, so leave a candidate out")
    return kept, [f"{told}; those items were dropped"]


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
