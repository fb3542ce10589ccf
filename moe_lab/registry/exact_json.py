"""JSON with one spelling and without floats, read from strangers in bounded time and memory."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX_BYTES = 64 << 20
# Parsed JSON takes up to 30 times its bytes, so the number of values has a limit of its own.
MAX_VALUES = 2 << 20
MAX_DEPTH = 32
MAX_INTEGER = 2**63


class ManifestProblem(ValueError):
    """Why bytes or fields are no manifest, card or header; the caller adds whose they are and ends the sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason.removesuffix("."))


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value: UTF-8, keys sorted by code point, no spaces, no floats."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8")


def exact_json(data: bytes) -> tuple[Any, bytes]:
    """Decodes JSON of strangers in bounded time and memory: integers of 64 bits, no other number, no key twice.

    Returns:
        The value and its canonical form.
    """
    if len(data) > MAX_BYTES:
        raise ManifestProblem(f"it has {len(data):,} bytes, and at most {MAX_BYTES:,} are read")
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise ManifestProblem(f"it holds more than {MAX_VALUES:,} values")
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_float=_refuse_float,
            parse_constant=_refuse_float,
            parse_int=_integer,
            object_pairs_hook=_unique,
        )
        return value, canonical(value)
    except RecursionError:
        raise ManifestProblem(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeError as error:
        raise ManifestProblem(f"it is not UTF-8 text: {error}") from None
    except json.JSONDecodeError as error:
        raise ManifestProblem(f"it is not JSON: {error}") from None


def check_depth(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ManifestProblem(f"it is nested deeper than {MAX_DEPTH} levels")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        check_depth(child, depth + 1)


def exact(value: Any, where: str, depth: int) -> Any:
    """The same value without floats; `float.__repr__`, because numpy's own prints its type as well."""
    if depth > MAX_DEPTH:
        raise ManifestProblem(f"{where[:80]} is nested deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and -MAX_INTEGER <= value < MAX_INTEGER:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__repr__(value)
    if isinstance(value, list | tuple):
        return [exact(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: exact(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    raise ManifestProblem(
        f"{where} is {ascii(value)[:80]} ({type(value).__name__}): a manifest holds text, true, false, null, "
        "finite numbers, 64-bit integers, lists, and objects whose keys are text"
    )


def _refuse_float(text: str) -> NoReturn:
    raise ManifestProblem(f"it holds the number {text[:40]}: only integers are exact; others are written as text")


def _integer(text: str) -> int:
    # 20 characters hold every 64-bit integer; Python itself is slow, or refuses, on thousands of digits.
    if len(text) > 20 or not -MAX_INTEGER <= int(text) < MAX_INTEGER:
        raise ManifestProblem(f"the integer {text[:40]} does not fit 64 bits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for twice, _ in pairs:
            if twice in seen:
                break
            seen.add(twice)
        raise ManifestProblem(f"the key {shown(twice)} is there twice")
    return value


def shown(value: Any) -> str:
    """Hostile values may be huge or nested past what `repr` can follow."""
    return ascii(value)[:60] if value is None or isinstance(value, str | int) else f"a {type(value).__name__}"
