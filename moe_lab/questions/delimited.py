"""Rows of CSV and TSV, where a quotation mark that nothing closes must not swallow rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from moe_lab.errors import LabError, printable
from moe_lab.questions.cells import is_number

Cells = dict[str, str]
_EVIDENCE = 3  # separators that fall where those of whole rows would
_NO_LIMIT = 1 << 30  # questions with documents in them pass the default of 128 KiB


def delimited_rows(path: Path, text: str, delimiter: str) -> tuple[list[tuple[int, Cells]], list[str]]:
    """The rows with the line that each begins in, from 1, and what to say of them.

    Quotation marks are read as RFC 4180 has them. Many tools write TSV without quoting: where its marks do not pair or
    enclose rows, and without quoting every line has as many cells as the header, the marks are part of the text.

    Raises:
        LabError: a column is named twice, a row has too many or too few cells, or a mark is not closed.
    """
    csv.field_size_limit(_NO_LIMIT)
    try:
        records = _parse(path, text, delimiter, csv.QUOTE_MINIMAL)
    except LabError:
        if delimiter == "\t" and '"' in text and (plain := _unquoted(path, text)) is not None:
            return plain
        raise
    if not (swallowed := _swallowed(records, delimiter)):
        return _named(path, records), []
    if delimiter == "\t" and (plain := _unquoted(path, text)) is not None:
        return plain
    line, lines = swallowed[0]
    return _named(path, records), [
        f"{path}:{line}: one quoted cell holds {lines} line breaks, and what is between them looks like rows of the "
        f"table ({len(swallowed)} such cells); if a quotation mark is not closed there, mend it"
    ]


def _unquoted(path: Path, text: str) -> tuple[list[tuple[int, Cells]], list[str]] | None:
    """The rows of a TSV whose quotation marks mean nothing, or None if its lines have no common number of cells."""
    try:
        rows = _named(path, _parse(path, text, "\t", csv.QUOTE_NONE))
    except LabError:
        return None
    return rows, [f"{path}: its quotation marks do not pair, so it was read without quoting, as most TSV is written"]


def _parse(path: Path, text: str, delimiter: str, quoting: int) -> list[tuple[int, list[str]]]:
    """Rows of cells, the header among them, each with the line that it begins in."""
    # Strict, or a mark inside a cell changes what the cells after it are.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    records: list[tuple[int, list[str]]] = []
    begins = 1
    try:
        for cells in reader:
            if cells:
                records.append((begins, cells))
                if len(cells) != len(records[0][1]):
                    raise LabError(
                        f"{path}:{begins}: this row has more or fewer cells than the header "
                        f"({len(cells)}, not {len(records[0][1])}); mend the file"
                    )
            begins = reader.line_num + 1
    except csv.Error as error:
        raise LabError(
            f"{path}:{begins}: a quotation mark opens a cell in this row and is not closed before a separator "
            f"({error}); double the marks inside quoted cells, and quote cells that begin with one"
        ) from error
    return records


def _named(path: Path, found: Sequence[tuple[int, list[str]]]) -> list[tuple[int, Cells]]:
    if not found:
        return []
    header = found[0][1]
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise LabError(
            f'{path}: the header names the column "{printable(twice[0])}" {header.count(twice[0])} times; '
            "rename or remove all but one"
        )
    # Spreadsheets write empty columns beside the table; one without a name may be the index.
    kept = [at for at, name in enumerate(header) if name or header.count(name) == 1]
    return [(line, {header[at]: cells[at] for at in kept}) for line, cells in found[1:]]


def _swallowed(found: Sequence[tuple[int, list[str]]], delimiter: str) -> list[tuple[int, int]]:
    """Rows with a quoted cell that looks like the end of a row, whole rows, and the begin of another one.

    That is what a mark makes of them that opens in one row and meets the next one in a later row. Each with its line
    and the line breaks in the cell.
    """
    return [
        (line, cell.count("\n"))
        for line, cells in found
        for at, cell in enumerate(cells)
        if "\n" in cell and _looks_like_rows(cells, at, cell, delimiter)
    ]


def _looks_like_rows(cells: list[str], at: int, cell: str, delimiter: str) -> bool:
    first, *whole, last = [line.split(delimiter) for line in cell.split("\n")]
    if (len(first), len(last)) != (len(cells) - at, at + 1) or any(len(row) != len(cells) for row in whole):
        return False
    # This row's cells before are of the first row swallowed, those after of the last: they must be of one kind.
    pairs = [*zip(first[1:], cells[at + 1 :], strict=True), *zip(last[:-1], cells[:at], strict=True)]
    alike = all(is_number(one) == is_number(other) for one, other in pairs)
    return alike and (len(cells) - 1) * (len(whole) + 1) >= _EVIDENCE
