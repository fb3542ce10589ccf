"""Documents, and what happens to each between its source and the tokenizer: cut, split, clean.

Every rule here is a function of texts alone. No seed, no listing order and, up to the removal of repeated
lines, no other document has a say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

REPEATED_LINE_CHARACTERS = 20


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a domain.

    Attributes:
        text: Unicode text with `\\n` line ends.
        source: where it came from, for people, e.g. `stdlib:json/decoder.py`.
        level: the difficulty of an exercise document, None for every other text.
        split: the part of the domain it belongs to; None until it is decided.
    """

    text: str
    source: str
    level: int | None = None
    split: Split | None = None


def content_digest(text: str) -> bytes:
    """The sha256 of the UTF-8 text: its first 8 bytes decide the split, the others the order.

    Two independent parts, because a cap that takes documents in the order of their digest would otherwise
    take all of one split first.
    """
    return hashlib.sha256(text.encode()).digest()


def split_of(text: str, heldout: float) -> Split:
    """The split of a text: `heldout` of all texts are held out, half for validation and half for test."""
    return split_of_digest(content_digest(text), heldout)


def split_of_digest(digest: bytes, heldout: float) -> Split:
    """`split_of` a text whose `content_digest` is known."""
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    if fraction >= heldout:
        return "train"
    return "test" if fraction < heldout / 2 else "validation"


def cut_document(document: Document, longest: int) -> Iterator[Document]:
    """Cuts a text longer than `longest` bytes at line ends into texts of at most that many.

    A book in one file would otherwise fall into one split as a whole. A line longer than the limit is cut
    between two characters.
    """
    encoded = document.text.encode()
    if len(encoded) <= longest:
        yield document
        return
    start, part = 0, 1
    while start < len(encoded):
        end = _cut_point(encoded, start, longest)
        yield replace(document, text=encoded[start:end].decode(), source=f"{document.source}#{part}")
        start, part = end, part + 1


def _cut_point(encoded: bytes, start: int, limit: int) -> int:
    end = start + limit
    if end >= len(encoded):
        return len(encoded)
    newline = encoded.rfind(b"\n", start, end)
    if newline >= 0:
        return newline + 1
    while encoded[end] & 0xC0 == 0x80:  # a continuation byte: inside a character
        end -= 1
    return end


def hash_order(documents: Iterable[Document]) -> list[Document]:
    """The documents in the order of their content, the same for every listing; exact copies are dropped."""
    distinct: dict[bytes, Document] = {}
    for document in documents:
        key = content_digest(document.text)
        known = distinct.get(key)
        if known is None or document.source < known.source:
            distinct[key] = document
    return [distinct[key] for key in sorted(distinct, key=lambda digest: digest[8:])]


def within_cap(documents: list[Document], max_bytes: int | None) -> list[Document]:
    """The longest run of whole documents from the front that fits; a larger cap only ever adds documents."""
    if max_bytes is None:
        return documents
    total = 0
    for index, document in enumerate(documents):
        total += len(document.text.encode())
        if total > max_bytes:
            return documents[:index]
    return documents


def assign_splits(documents: Iterable[Document], heldout: float) -> list[Document]:
    """Decides the split of every document that has none yet, each by its own text alone."""
    return [d if d.split else replace(d, split=split_of(d.text, heldout)) for d in documents]


def drop_repeated_lines(documents: Iterable[Document]) -> list[Document]:
    """Drops each line longer than 20 characters that an earlier line repeats, then documents left blank.

    No such line can then be in two splits. Exercises are left alone: their lines are distinct by
    construction.
    """
    seen: set[str] = set()
    cleaned = []
    for document in documents:
        if document.level is None:
            document = _without_lines(document, seen)
        if document.text and not document.text.isspace():
            cleaned.append(document)
    return cleaned


def _without_lines(document: Document, seen: set[str]) -> Document:
    lines = document.text.split("\n")
    kept = []
    for line in lines:
        if len(line) > REPEATED_LINE_CHARACTERS:
            if line in seen:
                continue
            seen.add(line)
        kept.append(line)
    return document if len(kept) == len(lines) else replace(document, text="\n".join(kept))
