"""Exercises: right answers, exact levels, items that are in one split only."""

import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from moe_lab.data.documents import Document
from moe_lab.data.exercises import FAMILIES, FAMILY_NAMES, FamilyName, draw_items, exercise_documents
from moe_lab.data.spec import ExercisesSource

LEVELS = (1, 2, 3, 4, 9)


def oracle(family: str, question: str) -> str:
    """The answer, worked out from the text of the question."""
    match family:
        case "copy":
            return question
        case "reverse":
            return "".join(reversed(question))
        case "letter":
            place, word = question.split(" of ")
            return dict(enumerate(word, start=1))[int(place)]
        case "sort":
            counts = Counter(question)
            return "".join(digit * counts[digit] for digit in "0123456789")
        case "count":
            letter, word = question.split(" in ")
            return str(len(word.split(letter)) - 1)
        case "successor":
            return str(int(question) + 1)
        case _:
            return str(eval(question))


def level_of(family: str, question: str) -> int:
    """The level, worked out from the text of the question."""
    match family:
        case "copy" | "reverse" | "sort":
            assert len(question) % 2 == 0
            return len(question) // 2
        case "letter":
            return len(question.split(" of ")[1]) // 2
        case "count":
            assert re.fullmatch("[abcd] in ([abcd]{4})+", question)
            return len(question.split(" in ")[1]) // 4
        case "multiplication":
            first, second = question.split("*")
            assert second in "23456789"
            return len(first)
        case _:
            numbers = re.findall(r"\d+", question)
            assert len(numbers) == (1 if family == "successor" else 2)
            assert len({len(number) for number in numbers}) == 1
            assert all(number == str(int(number)) for number in numbers)
            return len(numbers[0])


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(exercise_documents(FAMILY_NAMES, LEVELS, 300, seed=1, heldout=0.2))


def items(documents: list[Document]) -> list[tuple[Document, str, str, str]]:
    found = []
    for document in documents:
        assert document.text.endswith("\n")
        for line in document.text.splitlines():
            match = re.fullmatch(r"(\w+) ([^=]+) = ([^= ]+)", line)
            assert match, line
            found.append((document, match[1], match[2], match[3]))
    return found


def test_answers_and_levels_are_right(documents: list[Document]) -> None:
    for document, family, question, answer in items(documents):
        assert answer == oracle(family, question), (family, question)
        assert document.level == level_of(family, question), (family, question)
    assert {family for _, family, _, _ in items(documents)} == set(FAMILY_NAMES)


def test_a_document_holds_sixteen_items_of_one_level_and_split(documents: list[Document]) -> None:
    sizes: dict[tuple[int | None, str | None], list[int]] = defaultdict(list)
    for document in documents:
        sizes[document.level, document.split].append(document.text.count("\n"))
    assert set(sizes) == {(level, split) for level in LEVELS for split in ("train", "validation", "test")}
    for counts in sizes.values():
        assert set(counts[:-1]) <= {16}
        assert 1 <= counts[-1] <= 16


def test_documents_mix_families(documents: list[Document]) -> None:
    kinds = [{line.split()[0] for line in d.text.splitlines()} for d in documents if d.level == 3]
    assert sum(len(kind) >= 4 for kind in kinds) > len(kinds) * 0.9


def test_no_item_is_in_two_splits(documents: list[Document]) -> None:
    seen: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    for document, family, question, _ in items(documents):
        if family in ("addition", "multiplication"):
            question = " ".join(sorted(re.findall(r"\d+", question)))
        seen[family, question].add(document.split)
    assert all(len(splits) == 1 for splits in seen.values())


def test_an_item_of_two_seeds_is_in_one_split() -> None:
    split: dict[str, str | None] = {}
    shared = 0
    for seed in (1, 2):
        for document in exercise_documents(["addition"], [2], 2000, seed, 0.3):
            for line in set(document.text.splitlines()):
                shared += line in split
                assert split.setdefault(line, document.split) == document.split
    assert shared > 200


def test_held_out_items_come_once_and_scarce_training_items_come_again() -> None:
    lines: dict[str | None, Counter[str]] = defaultdict(Counter)
    for document in exercise_documents(["addition"], [1], 1000, 0, 0.2):
        lines[document.split].update(document.text.splitlines())
    assert sum(len(counter) for counter in lines.values()) == 100
    assert set(lines["test"].values()) == set(lines["validation"].values()) == {1}
    assert set(lines["train"].values()) == {10}


def test_repeats_do_not_follow_each_other() -> None:
    documents = exercise_documents(["successor"], [1], 1000, 0, 0.2)
    lines = [line for document in documents for line in document.text.splitlines()]
    assert len(lines) > 500
    assert sum(a == b for a, b in pairwise(lines)) < len(lines) / 4


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("level", LEVELS)
def test_draws_are_distinct_and_as_many_as_asked(family: FamilyName, level: int) -> None:
    drawn = draw_items(family, level, 400, seed=0)
    assert len({item.question for item in drawn}) == len(drawn) == min(400, FAMILIES[family].size(level))
    assert draw_items(family, level, 400, seed=0) == drawn


@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if FAMILIES[name].size(1) < 1500])
def test_a_family_holds_every_item_of_a_level(family: FamilyName) -> None:
    questions = {item.question for item in draw_items(family, 1, 10**4, seed=0)}
    digits = range(10)
    expected = {
        "copy": 26**2,
        "letter": 2 * 26**2,
        "reverse": 26**2,
        "sort": 10**2,
        "count": 4**5,
        "successor": 10,
        "addition": len({(a, b) for a in digits for b in digits}),
        "subtraction": len({(a, b) for a in digits for b in digits if a >= b}),
        "multiplication": 10 * 8,
    }
    assert len(questions) == expected[family] == FAMILIES[family].size(1)


def test_the_level_of_every_family_is_defined_in_the_docs(repository: Path) -> None:
    page = (repository / "docs" / "data.md").read_text()
    for name, family in FAMILIES.items():
        definition = (family.item.__doc__ or "").rstrip(".")
        assert f"| `{name}` | {definition}" in page


def test_seeds_draw_different_items() -> None:
    first, second = ({i.question for i in draw_items("copy", 4, 100, seed)} for seed in (0, 1))
    assert first.isdisjoint(second)


@pytest.mark.parametrize(
    "wrong",
    [
        {"families": ("adition",)},
        {"families": ("copy", "copy")},
        {"families": ()},
        {"levels": (0,)},
        {"levels": (10,)},
        {"levels": (1, 1)},
        {"count": 0},
        {"seed": -1},
    ],
)
def test_specs_refuse_what_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="1 validation error"):
        ExercisesSource(**wrong)  # type: ignore[arg-type]
