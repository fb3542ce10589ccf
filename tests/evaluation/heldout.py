"""Two small domains, prose and exercises, cut into rows for the tiny models of `tests.compose.published`."""

from __future__ import annotations

import random

from moe_lab.data import Batch, ByteTokenizer, Corpus, Document, build_corpus
from moe_lab.data.documents import SPLITS, Split
from moe_lab.data.exercises import exercise_documents
from moe_lab.evaluation.outcomes import domain_batches
from moe_lab.evaluation.passes import HeldOut

ROWS, BATCH, LENGTH = 3, 2, 40
WORDS = ("the", "of", "over", "under", "red", "blue", "naïve", "fox", "dog", "sees", "runs", "sleeps", "slowly")


def make_corpora() -> tuple[Corpus, Corpus]:
    """Prose of made-up sentences, and exercises of two levels."""
    rng = random.Random(0)
    prose = [
        Document(" ".join(rng.choices(WORDS, k=8)) + ".\n", f"prose#{index}", None, SPLITS[index % 3])
        for index in range(30)
    ]
    exercises = list(exercise_documents(("successor", "copy"), (1, 2), 60, 0, 0.5))
    tokenizer = ByteTokenizer()
    return build_corpus("prose", prose, tokenizer), build_corpus("exercises", exercises, tokenizer)


def make_batches(corpora: tuple[Corpus, ...], split: Split = "test") -> list[Batch]:
    """The same rows of each domain; the last batch of a domain is half padding."""
    return domain_batches(corpora, split, ROWS, BATCH, LENGTH)


def make_heldout(corpora: tuple[Corpus, ...]) -> HeldOut:
    return HeldOut(domains=tuple(corpus.name for corpus in corpora), batches=tuple(make_batches(corpora)))
