"""Text as it is written: whole characters, and never the front of a string that ends it."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on until one of some strings is there. What may be the front of one is held back.

    The string that is complete first ends the text, of several that are complete at once the longest: so it does not
    matter in what pieces the text comes.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held = tuple(stops), ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """The text that is certain to stay. Once a string was found, nothing more is."""
        if self.found is not None:
            return ""
        held = self._held + text
        ends = [(held.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in held]
        if ends:
            end, _, self.found = min(ends)
            self._held = ""
            return held[: end - len(self.found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of the text that a stop string begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
