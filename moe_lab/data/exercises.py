"""Exercises of exact difficulty, one a line: `family question = answer`.

Difficulty is the `level`, a whole number from 1, by the definition beside each family below. An item is in
exactly one split, decided by the item itself; a document holds items of one split and one level.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from moe_lab.data.documents import SPLITS, Document, Split, content_digest, split_of

FamilyName = Literal[
    "copy", "letter", "reverse", "sort", "count", "successor", "addition", "subtraction", "multiplication"
]
FAMILY_NAMES: tuple[FamilyName, ...] = get_args(FamilyName)

ITEMS_PER_DOCUMENT = 16
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"


class Item(NamedTuple):
    """A question, its answer, and the key that decides its split: 3+4 and 4+3 share one."""

    question: str
    answer: str
    key: str


class Family(NamedTuple):
    """A kind of exercise: how many items a level has, and the item with a number below that."""

    size: Callable[[int], int]
    item: Callable[[int, int], Item]


def _word(index: int, length: int, alphabet: str) -> str:
    letters = []
    for _ in range(length):
        index, letter = divmod(index, len(alphabet))
        letters.append(alphabet[letter])
    return "".join(letters)


def _numbers(level: int) -> range:
    """All numbers of exactly `level` digits; 0 is one of one digit."""
    return range(10 ** (level - 1) if level > 1 else 0, 10**level)


def _copy(level: int, index: int) -> Item:
    """2 * level letters a-z, said again."""
    word = _word(index, 2 * level, _LETTERS)
    return Item(word, word, word)


def _letter(level: int, index: int) -> Item:
    """The letter at a place, counted from 1, of 2 * level letters a-z."""
    index, place = divmod(index, 2 * level)
    word = _word(index, 2 * level, _LETTERS)
    question = f"{place + 1} of {word}"
    return Item(question, word[place], question)


def _reverse(level: int, index: int) -> Item:
    """2 * level letters a-z, last one first."""
    word = _word(index, 2 * level, _LETTERS)
    return Item(word, word[::-1], word)


def _sort(level: int, index: int) -> Item:
    """2 * level digits in ascending order."""
    digits = _word(index, 2 * level, _DIGITS)
    return Item(digits, "".join(sorted(digits)), digits)


def _count(level: int, index: int) -> Item:
    """How often a letter a-d is in 4 * level letters a-d."""
    drawn = _word(index, 1 + 4 * level, "abcd")
    letter, word = drawn[0], drawn[1:]
    question = f"{letter} in {word}"
    return Item(question, str(word.count(letter)), question)


def _successor(level: int, index: int) -> Item:
    """The number after one of `level` digits."""
    number = _numbers(level)[index]
    return Item(str(number), str(number + 1), str(number))


def _addition(level: int, index: int) -> Item:
    """Two numbers of `level` digits each."""
    numbers = _numbers(level)
    first, second = (numbers[i] for i in divmod(index, len(numbers)))
    return Item(f"{first}+{second}", str(first + second), f"{min(first, second)}+{max(first, second)}")


def _subtraction(level: int, index: int) -> Item:
    """Two numbers of `level` digits each, the second at most the first."""
    row = (math.isqrt(8 * index + 1) - 1) // 2  # the pairs counted off as a triangle
    numbers = _numbers(level)
    first, second = numbers[row], numbers[index - row * (row + 1) // 2]
    question = f"{first}-{second}"
    return Item(question, str(first - second), question)


def _multiplication(level: int, index: int) -> Item:
    """A number of `level` digits times a digit from 2 to 9."""
    place, factor = divmod(index, 8)
    first, second = _numbers(level)[place], factor + 2
    return Item(f"{first}*{second}", str(first * second), f"{min(first, second)}*{max(first, second)}")


FAMILIES: dict[FamilyName, Family] = {
    "copy": Family(lambda level: 26 ** (2 * level), _copy),
    "letter": Family(lambda level: 2 * level * 26 ** (2 * level), _letter),
    "reverse": Family(lambda level: 26 ** (2 * level), _reverse),
    "sort": Family(lambda level: 10 ** (2 * level), _sort),
    "count": Family(lambda level: 4 ** (1 + 4 * level), _count),
    "successor": Family(lambda level: len(_numbers(level)), _successor),
    "addition": Family(lambda level: len(_numbers(level)) ** 2, _addition),
    "subtraction": Family(lambda level: math.comb(len(_numbers(level)) + 1, 2), _subtraction),
    "multiplication": Family(lambda level: 8 * len(_numbers(level)), _multiplication),
}


def draw_items(family: FamilyName, level: int, count: int, seed: int) -> list[Item]:
    """`count` distinct items, or all there are of that level if those are fewer."""
    rng = random.Random(f"{seed} {family} {level}")  # text seeds go through sha512: the same in every process
    size, item = FAMILIES[family]
    if size(level) <= 2 * count:
        chosen = rng.sample(range(size(level)), min(count, size(level)))
    else:
        distinct: dict[int, None] = {}
        while len(distinct) < count:
            distinct[rng.randrange(size(level))] = None
        chosen = list(distinct)
    return [item(level, index) for index in chosen]


def exercise_documents(
    families: Sequence[FamilyName], levels: Sequence[int], count: int, seed: int, heldout: float
) -> Iterator[Document]:
    """Documents of 16 items each, all of one level and one split, their families mixed.

    Args:
        families: which kinds of exercise.
        levels: which difficulties of each.
        count: items drawn for each family and level.
        seed: of the draw. It has no part in the split: an item that two seeds draw is in one split.
        heldout: share of the items that is held out.
    """
    for level in levels:
        lines: dict[Split, list[tuple[bytes, str]]] = {split: [] for split in SPLITS}
        for family in families:
            items = draw_items(family, level, count, seed)
            for item in items:
                split = split_of(f"{family} {item.key}", heldout)
                line = f"{family} {item.question} = {item.answer}\n"
                repeats = max(1, count // len(items)) if split == "train" else 1
                lines[split] += [(content_digest(f"{line}{repeat}"), line) for repeat in range(repeats)]
        for split in SPLITS:
            yield from _grouped([line for _, line in sorted(lines[split])], level, split)


def _grouped(lines: list[str], level: int, split: Split) -> Iterator[Document]:
    for start in range(0, len(lines), ITEMS_PER_DOCUMENT):
        text = "".join(lines[start : start + ITEMS_PER_DOCUMENT])
        yield Document(text, f"exercises:level {level}#{start // ITEMS_PER_DOCUMENT + 1}", level, split)
