"""The kinds of experts there are. A kind is a file here that defines `KIND`, imported when it is first asked for."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from moe_lab.errors import LabError, did_you_mean, printable

if TYPE_CHECKING:
    from moe_lab.experts.kind import ExpertKind

DEFAULT = "gated_ffn"
"""What an interface without `kind` means."""

KINDS: tuple[str, ...] = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The names, which are those of the files."""


def find_kind(name: str) -> ExpertKind:
    """The kind of that name.

    Raises:
        LabError: this version has no such kind.
    """
    if name not in KINDS:
        raise LabError(f'unknown kind of expert "{printable(name[:80])}".{did_you_mean(name, KINDS)}')
    kind: ExpertKind = importlib.import_module(f"{__name__}.{name}").KIND
    return kind
