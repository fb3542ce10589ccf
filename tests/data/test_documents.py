"""Cutting, splitting, ordering, capping and cleaning of documents."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.data.documents import (
    SPLITS,
    Document,
    assign_splits,
    cut_document,
    drop_repeated_lines,
    hash_order,
    split_of,
    within_cap,
)

TEXT = st.text(alphabet=st.sampled_from("ab \n\té中🙂\u0301"), max_size=200)
TEXTS = st.lists(TEXT, max_size=12)


def docs(*texts: str) -> list[Document]:
    return [Document(text, f"test:{index}") for index, text in enumerate(texts)]


@given(TEXT, st.integers(4, 60))
def test_cut_pieces_are_the_text_and_fit(text: str, longest: int) -> None:
    pieces = [piece.text for piece in cut_document(Document(text, "t"), longest)]
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= longest for piece in pieces)
    if len(text.encode()) <= longest:
        assert pieces == [text]


def test_cuts_fall_at_line_ends_where_lines_fit() -> None:
    text = "".join(f"line number {n}\n" for n in range(1000))
    pieces = [piece.text for piece in cut_document(Document(text, "t"), 500)]
    assert all(piece.endswith("\n") for piece in pieces)
    assert all(len(piece) > 500 - len("line number 999\n") for piece in pieces[:-1])


def test_cut_pieces_keep_level_and_split_and_say_where_they_are_from() -> None:
    pieces = list(cut_document(Document("a\n" * 10, "notes.md", level=2, split="test"), 10))
    assert [(p.source, p.level, p.split) for p in pieces] == [
        ("notes.md#1", 2, "test"),
        ("notes.md#2", 2, "test"),
    ]


@given(st.text(max_size=50), st.floats(0.01, 0.5))
def test_split_is_the_hash_of_the_text(text: str, heldout: float) -> None:
    fraction = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64
    expected = "test" if fraction < heldout / 2 else "validation" if fraction < heldout else "train"
    assert split_of(text, heldout) == expected


def test_split_shares_are_as_asked() -> None:
    counts = Counter(split_of(f"text {n}", 0.2) for n in range(20_000))
    assert counts["train"] == pytest.approx(16_000, rel=0.02)
    assert counts["validation"] == pytest.approx(2_000, rel=0.1)
    assert counts["test"] == pytest.approx(2_000, rel=0.1)


@given(TEXTS, TEXTS, st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_order_or_other_documents(texts, others, random) -> None:
    alone = {d.text: d.split for d in assign_splits(hash_order(docs(*texts)), 0.5)}
    mixed = [*texts, *others]
    random.shuffle(mixed)
    together = {d.text: d.split for d in assign_splits(hash_order(docs(*mixed)), 0.5)}
    assert {text: together[text] for text in alone} == alone


@given(TEXTS, st.randoms(use_true_random=False))
def test_hash_order_is_the_same_for_every_listing_and_drops_copies(texts, random) -> None:
    listed = docs(*texts)
    shuffled = random.sample(listed, len(listed))
    ordered = hash_order(listed)
    assert hash_order(shuffled) == ordered
    assert sorted(d.text for d in ordered) == sorted(set(texts))


def test_a_cap_does_not_prefer_a_split() -> None:
    listed = hash_order(docs(*(f"text {n}" for n in range(5000))))
    capped = assign_splits(within_cap(listed, 20_000), 0.5)
    assert 1500 < len(capped) < 2500
    assert Counter(d.split for d in capped)["train"] == pytest.approx(len(capped) / 2, rel=0.1)


@given(TEXTS, st.integers(1, 500), st.integers(1, 500))
def test_a_larger_cap_only_adds_documents(texts, small, more) -> None:
    listed = docs(*texts)
    fewer, larger = within_cap(listed, small), within_cap(listed, small + more)
    assert larger[: len(fewer)] == fewer
    assert sum(len(d.text.encode()) for d in fewer) <= small
    assert within_cap(listed, None) == listed


def test_repeated_lines_are_dropped_once_longer_than_twenty_characters() -> None:
    long, short = "x" * 21, "y" * 20
    cleaned = drop_repeated_lines(
        docs(f"{long}\n{short}\n{short}\n", f"{short}\n{long}\nnew\n", f"{long}\n{long}", f"{long}é")
    )
    assert [d.text for d in cleaned] == [f"{long}\n{short}\n{short}\n", f"{short}\nnew\n", f"{long}é"]


def test_exercises_keep_their_repeated_lines() -> None:
    line = "addition 1234+1234 = 2468\n"
    exercise = Document(line, "e", level=4, split="train")
    assert drop_repeated_lines([*docs(line), exercise, exercise]) == [*docs(line), exercise, exercise]


@given(st.lists(st.lists(st.sampled_from(["a" * 30, "b" * 30, "c" * 21, "short"]), max_size=6), max_size=6))
def test_no_long_line_is_left_twice(lines: list[list[str]]) -> None:
    given_lines = [line for document in lines for line in document]
    cleaned = drop_repeated_lines(docs(*("\n".join(document) for document in lines)))
    counts = Counter(line for d in cleaned for line in d.text.split("\n"))
    assert all(counts[line] == 1 for line in given_lines if len(line) > 20)
    assert counts["short"] == given_lines.count("short")


def test_documents_left_blank_are_dropped() -> None:
    assert drop_repeated_lines(docs("", " \n\t\n", "\u2003")) == []


def test_there_are_three_splits() -> None:
    assert SPLITS == ("train", "validation", "test")
