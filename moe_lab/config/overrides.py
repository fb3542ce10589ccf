"""`key=value` on the command line: the value is read by the rules of the YAML file it changes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from moe_lab.config.strict_yaml import parse_yaml
from moe_lab.errors import LabError


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Returns a copy of `data` with each `a.b.0.c=value` set, the last one winning.

    Keys that are not there yet are added (whether they may be is the spec's affair); list items must exist.

    Raises:
        LabError: an override has no `=`, its value is not YAML, or its path leads through a plain value or
            to a list item that is not there.
    """
    # Not deepcopy: a YAML alias is one object in two places, and only the place named may change.
    changed: dict[str, Any] = json.loads(json.dumps(data))
    for override in overrides:
        path, equals, text = override.partition("=")
        parts = path.strip().split(".")
        if not equals or not all(parts):
            raise LabError(f'override "{override}": expected key=value, for example train.steps=100.')
        _assign(changed, parts, parse_yaml(text, f'override "{override}"'), override)
    return changed


def _assign(root: dict[str, Any], parts: list[str], value: Any, override: str) -> None:
    holder: Any = root
    for depth, part in enumerate(parts[:-1]):
        key = _key(holder, part, parts[:depth], override)
        # `train:` with nothing below it reads as null; it stands for a section still to be filled.
        if isinstance(holder, dict) and holder.get(part) is None:
            holder[part] = {}
        holder = holder[key]
    holder[_key(holder, parts[-1], parts[:-1], override)] = value


def _key(holder: Any, part: str, path: list[str], override: str) -> str | int:
    """Returns the key or list index that `part` means in `holder`."""
    where = ".".join(path)
    if isinstance(holder, dict):
        return part
    if not isinstance(holder, list):
        raise LabError(f'override "{override}": {where} is the plain value {holder!r}, so nothing can be set below it.')
    if not (part.isascii() and part.isdigit()) or int(part) >= len(holder):
        rule = f"an item from 0 to {len(holder) - 1}" if holder else "nothing, it is empty"
        raise LabError(f'override "{override}": {where} is a list, and "{part}" names no item. Use {rule}.')
    return int(part)
