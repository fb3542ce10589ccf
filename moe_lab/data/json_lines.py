"""JSON, and JSON Lines: one object a line, empty lines passed over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_lab.errors import LabError, printable


def json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in the text of a file, each with the number of its line, from 1.

    Raises:
        LabError: a line is not JSON, not an object, or names a key twice.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = parse_json(line, where, "write one JSON object a line")
        if not isinstance(row, dict):
            raise LabError(f"{where}: a {type(row).__name__}, not an object; write one JSON object a line")
        yield number, row


def parse_json(text: str, where: str, remedy: str) -> Any:
    """The value of a JSON text.

    Raises:
        LabError: it is not JSON, or an object in it names a key twice: the standard leaves open which of them counts.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise LabError(f'{where}: the key "{printable(twice)}" is there twice in one object; leave one of them')
        return entries

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise LabError(f"{where}: not JSON: {error}; {remedy}") from error
