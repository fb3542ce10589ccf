"""The arithmetic of a load: when requests arrive, what they read, and what their answers come to.

All times are in seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moe_lab.errors import LabError

Outcome = Literal["finished", "refused", "failed"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one request.

    Attributes:
        sent: from the beginning of the load to the moment it was sent.
        late: by how much that was after its arrival; 0 where it had none.
        outcome: `refused` is status 429, `failed` whatever else is no whole answer.
        tokens: from sending it to each of its tokens.
        ended: from sending it to the end of the answer.
        why: it failed.
    """

    sent: float
    outcome: Outcome
    tokens: tuple[float, ...]
    ended: float
    late: float = 0.0
    why: str = ""

    @property
    def first(self) -> float | None:
        """TTFT: from sending it to its first token; none without a token."""
        return self.tokens[0] if self.tokens else None

    @property
    def per_token(self) -> float | None:
        """TPOT: the mean time from one token to the next; none with fewer than two."""
        after = len(self.tokens) - 1
        return (self.tokens[-1] - self.tokens[0]) / after if after > 0 else None

    @property
    def gaps(self) -> list[float]:
        """From each token to the next."""
        return [later - earlier for earlier, later in itertools.pairwise(self.tokens)]

    def within(self, first: float, per_token: float) -> bool:
        """Whether it is whole, its TTFT is at most `first`, and its TPOT, if it has one, at most `per_token`."""
        if self.outcome != "finished" or self.first is None:
            return False
        return self.first <= first and (self.per_token is None or self.per_token <= per_token)


def draw_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests arrive in a Poisson process: independent exponential gaps of mean `1 / rate`, as far as `seconds`.

    A longer load begins with the arrivals of a shorter one, and twice the rate is the same load in half the time.

    Args:
        rate: requests per second.
        seconds: of the load.
        seed: the same seed draws the same arrivals.

    Raises:
        LabError: none falls into that time.
    """
    draw = np.random.default_rng(seed).exponential
    times = itertools.accumulate(float(draw()) / rate for _ in itertools.count())
    arrivals = list(itertools.takewhile(lambda time: time < seconds, times))
    if not arrivals:
        raise LabError(f"no request arrives in {seconds:g} s at {rate:g} per second; raise --seconds or the rate")
    return arrivals


def draw_prompts(text: str, characters: int, seed: Sequence[int]) -> Iterator[str]:
    """Pieces of a text, each of so many characters and from a place drawn evenly, without end.

    Raises:
        LabError: the text is shorter than one prompt.
    """
    if len(text) < characters:
        raise LabError(
            f"the text has {len(text):,} characters and a prompt {characters:,}; "
            "give a longer --file, or fewer --prompt-characters"
        )
    rng, places = np.random.default_rng(seed), len(text) - characters + 1
    starts = (int(rng.integers(places)) for _ in itertools.count())
    return (text[start : start + characters] for start in starts)


def percentile(values: Iterable[float], percent: int) -> float:
    """The least of the values that so many percent of them do not exceed: one that was measured, never between two."""
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


def tokens_per_second(answers: Iterable[Answer], seconds: float) -> float:
    """Tokens that came in the first `seconds` of the load, whatever became of their answers, by the second."""
    return sum(answer.sent + token < seconds for answer in answers for token in answer.tokens) / seconds


def ratio(value: float | None, base: float | None) -> float | None:
    """One over the other; none where either is not known or the base is 0."""
    return value / base if value is not None and base else None
