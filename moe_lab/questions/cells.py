"""What one cell of somebody else's table says: a number, an answer, a text."""

from __future__ import annotations

import math
import re
from typing import Any

from moe_lab.errors import LabError, printable

_TRUTH = {"true": 1.0, "false": 0.0}
_MISSING = {"", "nan", "+nan", "-nan", "na", "n/a", "null", "none"}
# What JSON and spreadsheets write. Python's float also reads 1_0 and the digits of every script.
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)", re.ASCII)


def is_number(text: str) -> bool:
    """Whether a cell's text is a number, true or false."""
    plain = text.strip().lower()
    return plain in _TRUTH or _NUMBER.fullmatch(plain) is not None


def read_number(value: Any, where: str, column: str) -> float:
    """The number in a cell; true and false are 1 and 0, and NaN is a cell with nothing in it."""
    text = "" if value is None else str(value).strip().lower()
    if text in _MISSING:
        return math.nan
    if isinstance(value, str | int | float) and is_number(text):
        return _TRUTH[text] if text in _TRUTH else float(text)
    raise LabError(
        f'{where}: {column}: "{printable(str(value)[:40])}" is not a number, true or false; name another column, '
        "or use right_when_equals for answers"
    )


def is_missing(value: Any) -> bool:
    """Whether there is nothing: JSON's null, or the NaN that some write for it. Text is never missing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def same_answer(one: Any, other: Any) -> bool:
    """Whether two cells say the same: texts as texts, numbers as numbers, a number and a text (of a CSV) as numbers.

    Raises:
        LabError: they are of types that cannot be compared, such as true and 1.
    """
    if is_missing(one) or is_missing(other):
        return False
    for a, b in ((one, other), (other, one)):
        if isinstance(a, str) and isinstance(b, bool):
            return _TRUTH.get(a.strip().lower()) == float(b)
        if isinstance(a, str) and isinstance(b, int | float):
            text = a.strip().lower()
            return _NUMBER.fullmatch(text) is not None and _exact(text) == b
    if _kind(one) is not _kind(other):
        raise LabError(f"{_shown(one)} and {_shown(other)} cannot be compared; write both in one type")
    return bool(one == other)


def read_text(value: Any, where: str, column: str) -> str | None:
    """A cell as text, a list as its lines; None where it or a line of it is missing.

    Raises:
        LabError: there are objects in it, or half of a surrogate pair.
    """
    lines = value if isinstance(value, list) else [value]
    if any(map(is_missing, lines)):
        return None
    if any(isinstance(line, dict | list) for line in lines):
        raise LabError(
            f'{where}: column "{column}" holds {_shown(value)}; name what is in it, such as {column}.text or {column}.0'
        )
    text = "\n".join(str(line).lower() if isinstance(line, bool) else str(line) for line in lines)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LabError(
            f'{where}: column "{column}": half of a surrogate pair at character {error.start}, not Unicode text; '
            "mend it, or leave that row out"
        ) from error
    return text


def key_text(value: Any, where: str, column: str) -> str:
    """A key as text, so that a number in JSON meets the same number in CSV."""
    if is_missing(value) or isinstance(value, dict | list):
        raise LabError(f"{where}: {column}: {_shown(value)} is no key; give every row a text or a number")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _exact(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _kind(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


_WORDS = {dict: "an object", list: "a list", str: "the text", type(None): "null"}


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        objects = isinstance(value, list) and any(isinstance(line, dict | list) for line in value)
        return "a list of objects or lists" if objects else _WORDS[type(value)]
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if is_missing(value) else f'"{printable(str(value)[:40])}"' if isinstance(value, str) else str(value)
