"""The items of a mapping: the rows of its first entry, with columns of the others joined by key, never by order."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from moe_lab.errors import LabError, NotFound, did_you_mean
from moe_lab.questions.cells import same_answer
from moe_lab.questions.entry import read_column, read_entry, row_keys
from moe_lab.questions.rows import ABSENT, Row, reach, table_stem
from moe_lab.questions.spec import OutcomesSpec, TableFile


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the items: a value each, and where it stands."""

    values: list[Any]
    rows: list[Row]
    origin: tuple[int, str]  # which file it is of, and what it is called there


@dataclasses.dataclass(frozen=True)
class Items:
    """The items of a table.

    Attributes:
        where: what errors call the file of the items.
        files: what each file is called in the names of columns; the items' own comes first.
        rows: for each item its row of each file.
        notes: what to say of how they were read.
    """

    where: Path
    files: tuple[str, ...]
    rows: list[tuple[Row, ...]]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Column:
        """The column of that name, of `file.name`, or what a dotted name reaches within a column.

        Raises:
            LabError: there is none, or files that have one of that name say different things.
        """
        holders = self._holders(name)
        if not holders:
            known = [str(column) for row in self.rows[0] for column in row.cells]
            raise NotFound(f'{self.where}: no column "{name}".{did_you_mean(name, known)}')
        first, *others = [self._column(file, own) for file, own in holders]
        for other in others:
            self._require_agreement(name, first, other)
        return first

    def _holders(self, name: str) -> list[tuple[int, str]]:
        """Which files have the column, and what it is called there."""
        whole = [(f, name) for f in range(len(self.files)) if any(name in rows[f].cells for rows in self.rows)]
        if whole:
            return whole
        named = [(f, name.removeprefix(f"{file}.")) for f, file in enumerate(self.files) if name.startswith(f"{file}.")]
        within = [(f, name) for f in range(len(self.files))]
        for candidates in (named, within):
            if holders := [(f, own) for f, own in candidates if self._holds(f, own)]:
                return holders
        return []

    def _holds(self, file: int, name: str) -> bool:
        return any(reach(rows[file].cells, name) is not ABSENT for rows in self.rows)

    def _column(self, file: int, name: str) -> Column:
        rows = [item[file] for item in self.rows]
        return Column(read_column(rows, name), rows, (file, name))

    def _require_agreement(self, name: str, one: Column, other: Column) -> None:
        for a, b, row, at in zip(one.values, other.values, one.rows, other.rows, strict=True):
            if not _agrees(a, b):
                first, second = (self.files[column.origin[0]] for column in (one, other))
                how = f'"{first}.{one.origin[1]}" or "{second}.{other.origin[1]}"'
                raise LabError(
                    f'"{name}" is a column of two files, and they differ ({row.path.name}:{row.place} and '
                    f"{at.path.name}:{at.place}); "
                    + (f"name it with its file: {how}" if first != second else "give one of the two files a `name`")
                )


def read_items(spec: OutcomesSpec, base: Path) -> Items:
    """The items that a mapping names, with their rows of the files that it joins.

    Raises:
        LabError: a file cannot be found or read, a filter keeps nothing, or a key is missing or stands twice.
    """
    notes: list[str] = []
    own = read_entry(spec.items, base, notes)
    where = own[0].path
    items: list[tuple[Row, ...]] = [(row,) for row in own]
    for file in spec.join:
        items = _joined(items, spec.items, file, read_entry(file, base, notes), notes)
    names = tuple(_called(file) for file in (spec.items, *spec.join))
    return Items(where, names, items, notes)


def _called(file: TableFile) -> str:
    first = file.path if isinstance(file.path, str) else file.path[0]
    return file.name or table_stem(Path(first))


def _joined(
    items: list[tuple[Row, ...]], own: TableFile, file: TableFile, rows: list[Row], notes: list[str]
) -> list[tuple[Row, ...]]:
    """The items with their rows of one more file."""
    assert own.key is not None, "the spec asks for keys where files are joined"
    assert file.key is not None
    joined: dict[str, Row] = {}
    for key, row in zip(row_keys(rows, file.key), rows, strict=True):
        if key in joined:
            raise LabError(
                f"{row.where}: {file.key} {_short(key)} is there twice, first at {joined[key].where}; rows are joined "
                "by it, so make it unique, or keep one of them with `where`"
            )
        joined[key] = row
    keys = row_keys([item[0] for item in items], own.key)
    if lost := [key for key in keys if key not in joined]:
        instead = (
            "; to stack its rows below the items', list it in the `path` of `items`" if len(lost) == len(keys) else ""
        )
        raise LabError(
            f"{rows[0].path}: {len(lost)} items of {items[0][0].path.name} are not in it, first {own.key} "
            f"{_short(lost[0])}; mend it{instead}"
        )
    if shared := len(keys) - len(set(keys)):
        notes.append(f"{items[0][0].path}: {shared} of {len(keys)} items share their {own.key} with another one")
    return [(*item, joined[key]) for item, key in zip(items, keys, strict=True)]


def _agrees(one: Any, other: Any) -> bool:
    try:
        return str(one) == str(other) or same_answer(one, other)
    except LabError:
        return False


def _short(key: str) -> str:
    return key if len(key) <= 60 else f"{key[:57]}..."
