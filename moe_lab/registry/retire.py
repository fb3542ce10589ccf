"""Taking a version out of use and back. Nothing is removed: each step adds one mark, which one caller can add."""

from __future__ import annotations

from dataclasses import dataclass

from moe_lab.errors import LabError
from moe_lab.registry.failures import write_error
from moe_lab.registry.marks import MAX_REASON_BYTES, RESTORED, RETIRED, Mark, mark_bytes, one_line, read_mark, reason_of
from moe_lab.registry.references import ArtifactRef
from moe_lab.registry.refs import resolve_ref, versions
from moe_lab.registry.stores import Store


@dataclass(frozen=True)
class Retirement:
    """What `retire` or `unretire` did.

    Attributes:
        ref: with its version.
        reason: why it is retired now; None where it is in use.
        changed: False where it was so already; then the reason is the older one.
    """

    ref: ArtifactRef
    reason: str | None
    changed: bool


def retire(store: Store, ref: ArtifactRef, reason: str) -> Retirement:
    """See `Registry.retire`."""
    text = _checked_reason(reason)
    if not text:
        raise LabError(f"retiring {ref} needs a reason: those who use it will read it. Give one line of text.")
    _require_version(store, ref, "retire")
    while True:
        last = _last_mark(store, ref)
        if last is not None and last.kind == RETIRED:
            return Retirement(ref, reason_of(read_mark(store, last)), changed=False)
        if _add(store, Mark(ref, RETIRED, last.number + 1 if last else 1), text):
            return Retirement(ref, text, changed=True)


def unretire(store: Store, ref: ArtifactRef, reason: str) -> Retirement:
    """See `Registry.unretire`."""
    text = _checked_reason(reason)
    _require_version(store, ref, "unretire")
    last = _last_mark(store, ref)
    if last is None or last.kind == RESTORED:
        return Retirement(ref, None, changed=False)
    # Losing means that somebody else has answered the same mark.
    return Retirement(ref, None, changed=_add(store, Mark(ref, RESTORED, last.number), text))


def _last_mark(store: Store, ref: ArtifactRef) -> Mark | None:
    return versions(store, ref).marks.get(ref.version or "")


def _require_version(store: Store, ref: ArtifactRef, verb: str) -> None:
    """Only what is published by number can be retired; a miss says what there is."""
    if ref.width is not None:
        raise LabError(f"{ref}: a width has no retirement of its own; {verb} {ref.title}@VERSION.")
    if ref.version is None:
        resolve_ref(store, ref)
        there = ", ".join(versions(store, ref).published)
        raise LabError(f"{ref} names no version to {verb}; write {ref.title}@VERSION. Published: {there}.")
    resolve_ref(store, ref, read_reason=False)


def _checked_reason(reason: str) -> str:
    text = one_line(reason)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise LabError(f"the reason {ascii(text)[:80]} cannot be written as UTF-8; use other characters.") from None
    if size >= MAX_REASON_BYTES:
        raise LabError(f"the reason has {size:,} bytes, and fewer than {MAX_REASON_BYTES:,} are kept; shorten it.")
    return text


def _add(store: Store, mark: Mark, text: str) -> bool:
    try:
        return store.put_if_absent(mark.key, mark_bytes(text))
    except OSError as error:
        verb = "retire" if mark.kind == RETIRED else "unretire"
        raise write_error(f"{verb} {mark.ref} in {store.where('')}", error, _outcome(store, mark)) from error


def _outcome(store: Store, mark: Mark) -> str:
    """The last fsync may fail when the mark is in place already."""
    try:
        if not store.exists(mark.key):
            return "Nothing changed."
    except OSError:
        pass
    return f"Whether {mark.ref} is {mark.kind} is not certain."
