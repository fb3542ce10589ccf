"""JSON Lines: one object a line, empty lines passed over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_lab.errors import LabError


def json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in the text of a file, each with the number of its line, from 1.

    Raises:
        LabError: a line is not JSON, or not an object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LabError(f"{where}: not JSON: {error}; write one JSON object a line") from error
        if not isinstance(row, dict):
            raise LabError(f"{where}: a {type(row).__name__}, not an object; write one JSON object a line")
        yield number, row
