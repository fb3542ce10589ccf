"""Marks beside a reference: numbered files that take its version out of use and back. They are only ever added."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moe_lab.errors import Damaged
from moe_lab.files import digest_of
from moe_lab.registry.references import ArtifactRef
from moe_lab.registry.stores import Store

RETIRED, RESTORED = "retired", "restored"
MAX_REASON_BYTES = 64 << 10
_NAME = re.compile(rf"([0-9.]+)\.({RETIRED}|{RESTORED})-([1-9][0-9]{{0,8}})")
_DIGEST_LINE = len("sha256-") + 64 + 1


@dataclass(frozen=True)
class Mark:
    """One file `refs/<owner>/<name>/<version>.retired-<n>` or `.restored-<n>`; the second answers the first."""

    ref: ArtifactRef
    kind: str
    number: int

    @property
    def key(self) -> str:
        return f"refs/{self.ref.title}/{self.ref.version}.{self.kind}-{self.number}"

    @property
    def order(self) -> tuple[int, bool]:
        """The highest mark of a version decides, and an answer outranks what it answers."""
        return self.number, self.kind == RESTORED


def split_mark(name: str) -> tuple[str, str, int] | None:
    """Version, kind and number of a mark's file name; None for any other name."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2], int(match[3])) if match else None


def mark_bytes(reason: str) -> bytes:
    """What a mark holds: the digest of the rest, then the reason, so that every byte counts."""
    text = f"{reason}\n".encode()
    return f"{digest_of(text)}\n".encode("ascii") + text


def read_mark(store: Store, mark: Mark) -> bytes:
    """All bytes of a mark, checked."""
    data = store.get(mark.key, MAX_REASON_BYTES + _DIGEST_LINE)
    if data[:_DIGEST_LINE] != f"{digest_of(data[_DIGEST_LINE:])}\n".encode("ascii") or data[-1:] != b"\n":
        raise Damaged(
            f"{mark.ref}: {store.where(mark.key)} is damaged: its first line is not the digest of the rest. "
            "Restore it from a copy."
        )
    return data


def reason_of(data: bytes) -> str:
    """The reason in a mark on one line, for people."""
    return one_line(data[_DIGEST_LINE:].decode("utf-8", errors="replace")) or "no reason given"


def one_line(text: str) -> str:
    return re.sub(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+", " ", text).strip()
