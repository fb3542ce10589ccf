"""The ledger: who was used for what, one line for each text that was written; and its sums.

A line is appended once a text has ended, by one write. A server that is killed loses the lines of the texts under way
and no other, and none is there twice: each has an id.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from moe_lab.files import append_line, read_lines
from moe_lab.generation.receipts import Receipt

By = Literal["owner", "module", "day"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Used:
    """A sum over texts."""

    name: str
    texts: int
    tokens: int
    """Tokens that ran any of it; by day, tokens read."""
    multiply_adds: int
    """In modules; by day, the routers' own included."""


def note_use(ledger: Path, composition: str, written: int, receipt: Receipt, end: str) -> None:
    """Appends what one text cost.

    Args:
        ledger: a JSON Lines file; made if it is not there.
        composition: the digest of the lockfile that served.
        written: tokens of the answer.
        receipt: of the text.
        end: why it ended: `stop`, `length`, or `cancelled`.
    """
    line = {
        "id": uuid.uuid4().hex,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "composition": composition,
        "end": end,
        "tokens_written": written,
        **receipt.as_json(),
    }
    append_line(ledger, json.dumps(line, allow_nan=False))


def sum_use(ledger: Path, by: By) -> tuple[list[Used], int]:
    """Sums the ledger, the most multiply-adds first; and the number of lines that a crash left torn."""
    lines = read_lines(ledger)
    whole = {line["id"]: line for line in lines if line is not None}
    texts: dict[str, set[str]] = {}
    sums: dict[str, list[int]] = {}
    for number, line in whole.items():
        for name, tokens, multiply_adds in _entries(line, by):
            texts.setdefault(name, set()).add(number)
            total = sums.setdefault(name, [0, 0])
            total[0] += tokens
            total[1] += multiply_adds
    used = [
        Used(name=name, texts=len(texts[name]), tokens=tokens, multiply_adds=multiply_adds)
        for name, (tokens, multiply_adds) in sums.items()
    ]
    return sorted(used, key=lambda use: (-use.multiply_adds, use.name)), sum(line is None for line in lines)


def _entries(line: dict[str, Any], by: By) -> Iterable[tuple[str, int, int]]:
    if by == "day":
        return [(line["at"][:10], line["tokens_read"], line["multiply_adds"])]
    return [(use[by], use["tokens"], use["multiply_adds"]) for use in line["modules"]]
