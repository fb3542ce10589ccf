"""The rows of one file of somebody else's: CSV, TSV, JSON Lines or JSON, with or without `.gz`."""

from __future__ import annotations

import dataclasses
import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_lab.data.json_lines import json_rows, parse_json
from moe_lab.errors import LabError, NotFound, classify, did_you_mean
from moe_lab.questions.delimited import delimited_rows

_KINDS = "use .csv, .tsv, .jsonl, .ndjson or .json, with or without .gz"


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: text from CSV, JSON values from JSON."""

    path: Path
    place: str  # in the file, such as its line
    cells: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.path}:{self.place}"


def read_rows(path: Path, *, inside: str | None = None, key: str | None = None) -> tuple[list[Row], list[str]]:
    """The rows of a file, and what to say of how they were read.

    Args:
        inside: of a .json file, where in it the rows are.
        key: of a .json file whose rows are an object, the column that their names go to if they have no such column.

    Raises:
        LabError: it cannot be read, is damaged, or says the same thing twice.
    """
    kind = table_kind(path)
    text = read_table_text(path)
    if inside is not None and kind != "json":
        raise LabError(f"{path}: `rows` says where in a .json file the rows are; leave it out for .{kind}")
    if kind in ("csv", "tsv"):
        rows, notes = delimited_rows(path, text, "\t" if kind == "tsv" else ",")
        return [Row(path, str(line), cells) for line, cells in rows], notes
    if kind in ("jsonl", "ndjson"):
        return [Row(path, str(line), cells) for line, cells in json_rows(path, text)], []
    if kind == "json":
        return _json_file(path, text, inside, key), []
    raise LabError(f"{path}: unknown kind of table; {_KINDS}")


def table_kind(path: Path) -> str:
    """The ending of a file's name, without the `.gz`."""
    return path.name.removesuffix(".gz").rpartition(".")[2].lower()


def table_stem(path: Path) -> str:
    """A file's name without its ending and `.gz`; versions such as `gpt-4.1` keep their dots."""
    return Path(path.name.removesuffix(".gz")).stem


def read_table_text(path: Path) -> str:
    """The text of a file, unpacked if its name ends in `.gz`, without a byte order mark."""
    try:
        raw = gzip.open(path, "rb").read() if path.name.endswith(".gz") else path.read_bytes()  # noqa: SIM115
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise classify(error)(
            f"{path}: cannot be read as UTF-8 text ({error}); download or convert it again"
        ) from error
    if "\0" in text:
        raise LabError(f"{path}: holds NUL bytes, so it is not UTF-8 text; download or convert it again")
    return text


def _json_file(path: Path, text: str, inside: str | None, key: str | None) -> list[Row]:
    if inside is None and _is_json_lines(text):
        return [Row(path, str(line), cells) for line, cells in json_rows(path, text)]
    value = parse_json(text, str(path), "write a list of objects, or one object a line")
    if inside is not None:
        value = reach(value, inside)
        if value is ABSENT:
            raise NotFound(f"{path}: `rows: {inside}` is not in it; write where in the file the rows are")
    return [Row(path, place, cells) for place, cells in _json_rows(path, value, key)]


def _is_json_lines(text: str) -> bool:
    """Whether the first two lines are whole objects: some name such files .json."""
    lines = [line.strip() for line in text.lstrip().split("\n", 2)[:2]]
    return len(lines) == 2 and all(line.startswith("{") and line.endswith("}") for line in lines)


def _json_rows(path: Path, value: Any, key: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Rows out of a list of objects, an object of objects (its names are keys), or an object of columns."""
    if isinstance(value, list):
        if not all(isinstance(row, dict) for row in value):
            at = next(n for n, row in enumerate(value, start=1) if not isinstance(row, dict))
            raise LabError(
                f"{path}: row {at} is a {type(value[at - 1]).__name__}, not an object; write a list of objects"
            )
        return [(f"row {number}", row) for number, row in enumerate(value, start=1)]
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        named = key is not None and not any(key in row for row in value.values())
        return [(f'"{name}"', {str(key): name, **row} if named else row) for name, row in value.items()]
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        lengths = {name: len(column) for name, column in value.items()}
        if len(set(lengths.values())) == 1:
            columns = zip(*value.values(), strict=True)
            return [(f"row {n}", dict(zip(value, row, strict=True))) for n, row in enumerate(columns, start=1)]
    names = did_you_mean("", map(str, value)) if isinstance(value, dict) else ""
    raise LabError(
        f"{path}: neither a list of objects, nor an object of objects or of columns of one length; "
        f"write `rows: NAME` if they are further inside.{names}"
    )


class _Absent:
    """Tells what is not there from null."""


ABSENT = _Absent()


def reach(value: Any, name: str) -> Any:
    """What is called `name` in a row: a column, or a dotted path into it; ABSENT where there is none.

    A column may have dots in its name, so the longest name counts. Numbers count the items of a list from 0.
    """
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
        for at in [at for at, mark in enumerate(name) if mark == "."][::-1]:
            if name[:at] in value and (value_there := reach(value[name[:at]], name[at + 1 :])) is not ABSENT:
                return value_there
    elif isinstance(value, list):
        first, _, rest = name.partition(".")
        if first.isascii() and first.isdigit() and int(first) < len(value):
            return reach(value[int(first)], rest) if rest else value[int(first)]
    return ABSENT
