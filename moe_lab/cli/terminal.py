"""Whatever is printed survives every terminal: a sign that its encoding lacks is spelt with those that it has."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

_HANDLER = "moe_lab.spell"
_SPELT = {"─": "-", "━": "-", "│": "|", "├": "|", "└": "`", "·": "-", "–": "-", "—": "-", "…": "...", "µ": "u"}


def spell_what_is_missing() -> None:
    """Lets standard output and error spell what their encoding lacks, where Python would stop with an error."""
    codecs.register_error(_HANDLER, _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spell_sign, error.object[error.start : error.end])), error.end


def _spell_sign(sign: str) -> str:
    """Drops accents; whatever has no likeness in ASCII is written as Python would escape it."""
    likeness = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return _SPELT.get(sign) or likeness or ascii(sign)[1:-1]
