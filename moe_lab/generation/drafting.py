"""Guesses at how a text goes on, which the model then checks several at a time.

A step reads the last token of a text and what was guessed behind it, and draws a token behind each as it would have
been drawn one by one; guesses that are those tokens stay. So a text is the same with and without guesses, to the last
bit, whatever its temperature, and only its pace changes (Leviathan et al. 2023, arXiv 2211.17192, with a draft that is
certain: a guess is accepted as often as the model would have drawn it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

LONGEST, SHORTEST = 4, 2
_BELIEVED = 4.0  # guesses that what is believed at first weighs as much as
_AT_FIRST = 0.2  # of guesses are right, as long as nobody knows better
_MARGIN = 1.05  # checking has to be so much faster: what it is expected to give is an estimate
_FADES = 0.97  # of what was seen, with each further guess


class Drafter(Protocol):
    """Guesses of one text."""

    def read(self, tokens: Iterable[int]) -> None:
        """Takes note of the text's next tokens."""

    def guess(self, most: int) -> list[int]:
        """At most so many tokens that may come next; none is no guess."""


class NgramDrafter:
    """What came the last time that the text's last few tokens stood together, the most of them first.

    Prompt lookup: cheap, and right where a text repeats itself, as code, summaries and edits do.
    """

    def __init__(self) -> None:
        self._text: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # the place behind the newest of some tokens together

    def read(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            # What ends the text is put down once something stands behind it: else it would only find itself.
            for length in range(SHORTEST, LONGEST + 1):
                if len(self._text) >= length:
                    self._behind[tuple(self._text[-length:])] = len(self._text)
            self._text.append(int(token))

    def guess(self, most: int) -> list[int]:
        for length in range(LONGEST, SHORTEST - 1, -1):
            place = self._behind.get(tuple(self._text[-length:]))
            if place is not None:
                guesses: list[int] = []
                for at in range(place, place + most):  # what repeats itself goes on with its own guesses
                    guesses.append(self._text[at] if at < len(self._text) else guesses[at - len(self._text)])
                return guesses
        return []


class Luck:
    """How often the guesses of one text are right; also of guesses that were not checked, once the token is known."""

    def __init__(self) -> None:
        self._right, self._all = _AT_FIRST * _BELIEVED, _BELIEVED

    def note(self, right: int, of: int) -> None:
        for tried in range(of):
            self._right = self._right * _FADES + (tried < right)
            self._all = self._all * _FADES + 1

    def expect(self, guesses: int) -> float:
        """How many of so many guesses in a row will be right."""
        share = self._right / self._all
        return sum(share**place for place in range(1, guesses + 1))


class Pace:
    """Whether checking guesses gives more tokens a second than writing them one by one: measured, for both."""

    def __init__(self) -> None:
        self._seconds: dict[bool, float] = {}
        self._warm = {False: 0, True: 0}

    def note(self, checked: bool, seconds: float) -> None:
        """What a step took. The first of its kind may have compiled, and is passed over."""
        self._warm[checked] += 1
        if self._warm[checked] > 1:
            before = self._seconds.get(checked, seconds)
            self._seconds[checked] = min(seconds, before) * 0.5 + before * 0.5

    def worth_it(self, expected: Sequence[float]) -> bool:
        """Whether to check guesses: `expected` says for each text that is written how many will be right."""
        plain, checked = (self._seconds.get(kind) for kind in (False, True))
        dearer = 1.6 if plain is None or checked is None else checked / plain
        return len(expected) + sum(expected) > dearer * _MARGIN * len(expected)
