"""The rows of one entry of a mapping: its files are found, stacked by rows and filtered."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_lab.data.files import find_files
from moe_lab.errors import LabError, NotFound, did_you_mean, printable
from moe_lab.questions.cells import is_missing, key_text, same_answer
from moe_lab.questions.rows import ABSENT, Row, reach, read_rows, read_table_text, table_kind, table_stem
from moe_lab.questions.spec import TableFile

FOLDER = "MOE_LAB_OUTCOMES"
_STACKED = "files in one `path` are stacked by rows; to add the columns of a file by key, list it under `join`"


def read_entry(file: TableFile, base: Path, notes: list[str]) -> list[Row]:
    """The rows of one entry of a mapping; `notes` is told what there is to say of them.

    Raises:
        LabError: a file cannot be found or read, or a filter keeps nothing.
    """
    paths, rows = _find_all(file, base), []
    for path in paths:
        found, said = read_rows(path, inside=file.rows, key=file.key)
        notes += said
        rows += [_with_name(row, file.file_column) for row in found]
    if not rows:
        raise LabError(f"{paths[0]}: no rows; a router needs items to learn from")
    for column, wanted in file.where.items():
        rows = _where(rows, column, wanted if isinstance(wanted, tuple) else (wanted,))
    return _without(file, rows, base, notes) if file.drop is not None else rows


def row_keys(rows: Sequence[Row], column: str) -> list[str]:
    """The key of each row, as text."""
    return [key_text(value, row.where, column) for value, row in zip(read_column(rows, column), rows, strict=True)]


def read_column(rows: Sequence[Row], column: str) -> list[Any]:
    """The values of a column. A key that some objects of a file leave out is null there.

    Raises:
        NotFound: a file has no such column in any of its rows.
    """
    values = [reach(row.cells, column) for row in rows]
    have = {row.path for row, value in zip(rows, values, strict=True) if value is not ABSENT}
    if without := [row for row in rows if row.path not in have]:
        told = f'{without[0].path}: no column "{column}".{did_you_mean(column, map(str, without[0].cells))}'
        raise NotFound(f"{told} {min(have).name} has it: {_STACKED}" if have else told)
    return [None if value is ABSENT else value for value in values]


def find_file(path: str, base: Path) -> Path:
    """A table's file: beside the YAML file, else in the folder that MOE_LAB_OUTCOMES names."""
    beside, folder = base / Path(path).expanduser(), os.environ.get(FOLDER)
    if beside.is_file():
        return beside
    if folder and (Path(folder) / path).is_file():
        return Path(folder) / path
    raise NotFound(f"{path}: no such file, {_looked(beside)}; download it, then set {FOLDER} to its folder")


def _find_all(file: TableFile, base: Path) -> list[Path]:
    """The files of one `path`: those listed in that order, those of a pattern by name, each once."""
    files: dict[str, Path] = {}
    for pattern in (file.path,) if isinstance(file.path, str) else file.path:
        for path in _matches(pattern, base):
            files.setdefault(os.path.realpath(path), path)
    return list(files.values())


def _matches(pattern: str, base: Path) -> list[Path]:
    if not any(mark in pattern for mark in "*?[") or (base / pattern).is_file():
        return [find_file(pattern, base)]
    folder = os.environ.get(FOLDER)
    for place in (base, *([Path(folder)] if folder else [])):
        if files := find_files(place, [pattern]):
            return files
    raise NotFound(
        f"{pattern}: no file matches, {_looked(base / pattern)}; download them, then set {FOLDER} to their folder"
    )


def _looked(beside: Path) -> str:
    folder = os.environ.get(FOLDER)
    return f"neither {beside} nor in {FOLDER}={folder}" if folder else f"neither {beside}, and {FOLDER} is not set"


def _with_name(row: Row, column: str | None) -> Row:
    if column is None:
        return row
    if column in row.cells:
        raise LabError(f'{row.where}: has a column "{column}" already; give `file_column` another name')
    return dataclasses.replace(row, cells={**row.cells, column: table_stem(row.path)})


def _where(rows: list[Row], column: str, wanted: Sequence[Any]) -> list[Row]:
    values = read_column(rows, column)
    kept = [r for value, r in zip(values, rows, strict=True) if any(_is(value, one, r, column) for one in wanted)]
    if not kept:
        there = {printable(str(value)) for value in values}
        listed = " or ".join(map(str, wanted))
        raise NotFound(f"{rows[0].path}: no row whose {column} is {listed}.{did_you_mean(listed, there)}")
    return kept


def _is(value: Any, wanted: Any, row: Row, column: str) -> bool:
    if wanted is None:
        return is_missing(value) or value == ""
    try:
        return same_answer(value, wanted)
    except LabError as error:
        raise type(error)(f"{row.where}: {column}: {error}") from None


def _without(file: TableFile, rows: list[Row], base: Path, notes: list[str]) -> list[Row]:
    """The rows whose keys are not in the file that `drop` names."""
    assert file.drop is not None
    assert file.key is not None, "the spec asks for it with `drop`"
    path = find_file(file.drop if isinstance(file.drop, str) else file.drop.path, base)
    if table_kind(path) == "txt":
        dropped = {line.removesuffix("\r") for line in read_table_text(path).split("\n") if line.strip()}
    else:
        column = file.key if isinstance(file.drop, str) else file.drop.key or file.key
        listed, said = read_rows(path, key=column)
        notes += said
        dropped = set(row_keys(listed, column)) if listed else set()
    keys = row_keys(rows, file.key)
    kept = [row for key, row in zip(keys, rows, strict=True) if key not in dropped]
    if unknown := len(dropped - set(keys)):
        notes.append(f"{path}: {unknown} of {len(dropped)} keys to drop are no {file.key} of {rows[0].path.name}")
    if not kept:
        raise LabError(f"{path}: drops every row of {rows[0].path}; a router needs items to learn from")
    notes.append(f"{path}: {len(rows) - len(kept)} of {len(rows)} rows were dropped")
    return kept
