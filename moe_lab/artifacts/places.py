"""Keeps the author's folders out of what is published: a path becomes a name relative to the lab, or a name alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_lab.config import canonical_json
from moe_lab.errors import LabError

_START = r"(?:file://)?(?:/(?!/)|~(?:[A-Za-z_][\w.-]*)?/|(?:\./)?\.\./)"
_WHOLE = re.compile(_START)
# In a sentence "/h" or "/" alone is no path, and the "//" of a URL starts none.
_INSIDE = re.compile(rf"(?<![^\s\"'(=,;:<\[{{])(?=[^\s]*/[^\s]*/|~|\.){_START}[^\s\"'(),;<>\[\]{{}}]+")
_HOMES = ("/home", "/Users")


def without_places(fields: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The sections of a manifest, with every path in a text cut to what is below `root`, the lab, or to its last name.

    `interface` stays as it is: its texts are names that others look up. A router is built from its settings, so a path
    in them would have to work elsewhere, and is refused.
    """
    settings = fields.get("config", {}).get("router")
    if settings is not None and (rewritten := _rewritten(settings, root)) != settings:
        raise LabError(
            f"the router's settings {settings} name a place on this machine, which nobody else has (it would be "
            f"published as {rewritten}); name a package, or a file relative to the lab"
        )
    return {key: value if key == "interface" else _rewritten(value, root) for key, value in fields.items()}


def is_elsewhere(path: str) -> bool:
    """Whether a text is a path that means something on this machine only."""
    return _WHOLE.match(path) is not None or ".." in Path(path).parts


def _rewritten(value: Any, root: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _rewritten(each, root) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rewritten(each, root) for each in value]
    return _text(value, root) if isinstance(value, str) else value


def _text(text: str, root: Path) -> str:
    if text.startswith(("{", "[")):
        try:
            value = json.loads(text)
        except ValueError:
            pass
        else:
            cut = _rewritten(value, root)
            return text if cut == value else canonical_json(cut)
    if is_elsewhere(text):
        return _name(text, root)
    return _INSIDE.sub(lambda found: _name(found[0], root), text)


def _name(path: str, root: Path) -> str:
    place = Path(os.path.normpath(Path(path.removeprefix("file://")).expanduser()))
    for top in (root.absolute(), root.resolve()):
        if place.is_absolute() and place.is_relative_to(top):
            return place.relative_to(top).as_posix()
    home = str(place.parent) in _HOMES or place == Path.home()
    return "~" if home else place.name or "/"
