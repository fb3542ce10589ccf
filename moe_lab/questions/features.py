"""What a question router looks at: hashed n-grams of the text, its shape, the group, and the table's own numbers.

Where the config names one, the vectors of a sentence encoder too.

Hashing needs no vocabulary, so counts are made once for a whole table and nothing of an item leaks into another's.
What is learnt from items (document frequencies, means and spreads) is learnt from the training items alone.

Legend: N items, H hashed features, X features, F numbers, W width of the encoder (0 without one).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_lab.questions.spec import QuestionFeatures
from moe_lab.questions.table import ItemTable

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_SYMBOLS = frozenset("=+-*/^\\$<>_(){}[]|")
_CLIP = 3.0
_LARGE = 5000
# Words, single digits and single signs: in `3x^2 - 1 = 0` what matters is not the number.
_TOKEN = r"[^\W\d_]+|\d|[^\w\s]"
SHAPE = (
    "log characters",
    "log characters of the first line",
    "log lines",
    "share of digits",
    "share of symbols",
    "share of capitals",
    "share of commas",
    "log characters of the longest line",
    "spread of line lengths",
    "mean word length",
    "share of words that are new",
    "negated",
    "has a question mark",
    "has a gap to fill",
    "asks which of the following",
    "speaks of statements",
    "has a condition",
)
"""The numbers that `text_shape` reads off a text."""


@dataclasses.dataclass(frozen=True)
class RawFeatures:
    """Of a whole table, before anything is learnt: n-gram counts, groups, numbers, and the encoder's vectors."""

    counts: tuple[Any, ...]  # csr_matrix [N, H], one for words and one for characters, where they are looked at
    group_N: np.ndarray
    number_NF: np.ndarray
    encoded_NW: np.ndarray
    encoder: str | None  # digest

    def rows(self, index: np.ndarray) -> RawFeatures:
        """Some of the items."""
        return dataclasses.replace(
            self,
            counts=tuple(counts[index] for counts in self.counts),
            group_N=self.group_N[index],
            number_NF=self.number_NF[index],
            encoded_NW=self.encoded_NW[index],
        )


def raw_features(
    table: ItemTable, settings: QuestionFeatures, told: Callable[[int], None] = lambda done: None
) -> RawFeatures:
    """Counts, numbers and vectors of all items; says how many an encoder has read."""
    numbers = [np.asarray(table.number_NF, np.float64)]
    counts, encoded_NW, encoder = [], np.zeros((len(table), 0), np.float32), None
    if table.text_N is not None:
        numbers.append(np.array([text_shape(text) for text in table.text_N]))
        counts = [count(table.text_N) for count in _counters(settings)]
        if settings.encoder is not None:
            from moe_lab.questions.encoder import encode_texts  # brings jax

            encoded_NW, encoder = encode_texts(settings.encoder, table.text_N, told)
    return RawFeatures(tuple(counts), table.group_N, np.concatenate(numbers, axis=1), encoded_NW, encoder)


def text_shape(text: str) -> list[float]:
    """How a text looks, whatever it is about: the numbers named in `SHAPE`."""
    lines, words, low = text.split("\n"), text.split(), text.lower()
    length, lengths = max(len(text), 1), [len(line) for line in lines]
    return [
        np.log(length),
        np.log1p(lengths[0]),
        np.log1p(len(lines)),
        sum(map(str.isdigit, text)) / length,
        sum(letter in _SYMBOLS for letter in text) / length,
        sum(map(str.isupper, text)) / length,
        text.count(",") / length,
        np.log1p(max(lengths)),
        float(np.std(lengths)),
        sum(map(len, words)) / max(len(words), 1),
        len(set(words)) / max(len(words), 1),
        float(re.search(r"\b(not|except)\b", low) is not None),
        float("?" in text),
        float("__" in text),
        float("which of the following" in low),
        float("statement" in low),
        float(re.search(r"\bif\b", low) is not None),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """From raw features to the columns that heads read: tf-idf of length 1, groups, standardised numbers."""

    settings: QuestionFeatures
    num_groups: int
    kept: tuple[np.ndarray, ...]  # hashed features of at least two training items, three in large tables
    idf: tuple[np.ndarray, ...]
    mean_F: np.ndarray
    spread_F: np.ndarray
    encoder: str | None  # digest
    encoded_mean_W: np.ndarray

    def __call__(self, raw: RawFeatures) -> csr_matrix:
        """The features of items [N, X], float32."""
        from scipy import sparse

        blocks = [
            _tf_idf(counts, kept, idf) * np.float32(len(self.kept) ** -0.5)
            for counts, kept, idf in zip(raw.counts, self.kept, self.idf, strict=True)
        ]
        items = len(raw.group_N)
        known = (raw.group_N >= 0) & (raw.group_N < self.num_groups)
        places = (np.flatnonzero(known), raw.group_N[known])
        ones = np.full(len(places[0]), self.settings.group_weight, np.float32)
        groups = sparse.csr_matrix((ones, places), (items, self.num_groups))
        encoded = (raw.encoded_NW - self.encoded_mean_W) * np.float32(self.settings.encoder_weight)
        numbers = np.clip((raw.number_NF - self.mean_F) / self.spread_F, -_CLIP, _CLIP)
        # Too little and too much may both be hard: the distance from the middle is a feature of its own.
        bent = np.concatenate([numbers, np.abs(numbers) - 0.8], axis=1) * self.settings.number_weight
        dense = (sparse.csr_matrix(encoded), groups, sparse.csr_matrix(bent.astype(np.float32)))
        return sparse.hstack([*blocks, *dense], format="csr")


def fit_features(raw: RawFeatures, settings: QuestionFeatures, num_groups: int) -> FeatureMap:
    """Learns frequencies, means and spreads from training items."""
    kept, idf = [], []
    items = len(raw.group_N)
    for counts in raw.counts:
        frequency = np.bincount(counts.indices, minlength=counts.shape[1])
        frequent = np.flatnonzero(frequency >= (3 if items >= _LARGE else 2))
        kept.append(frequent.astype(np.int32))
        idf.append((np.log((1 + items) / (1 + frequency[frequent])) + 1).astype(np.float32))
    spread = raw.number_NF.std(axis=0)
    return FeatureMap(
        settings=settings,
        num_groups=num_groups,
        kept=tuple(kept),
        idf=tuple(idf),
        mean_F=raw.number_NF.mean(axis=0),
        spread_F=np.where(spread > 0, spread, 1.0),
        encoder=raw.encoder,
        encoded_mean_W=raw.encoded_NW.mean(axis=0),
    )


def _counters(settings: QuestionFeatures) -> list[Any]:
    from sklearn.feature_extraction.text import HashingVectorizer

    plain = {"n_features": settings.buckets, "alternate_sign": False, "norm": None, "dtype": np.float32}
    made = []
    if settings.words:
        made.append(HashingVectorizer(ngram_range=(1, settings.words), token_pattern=_TOKEN, **plain))
    if settings.characters:
        made.append(HashingVectorizer(analyzer="char_wb", ngram_range=(3, max(3, settings.characters)), **plain))
    return [vectorizer.transform for vectorizer in made]


def _tf_idf(counts: csr_matrix, kept: np.ndarray, idf: np.ndarray) -> csr_matrix:
    """Logarithmic counts times idf, each row of length 1 (or 0, where it knows no feature)."""
    from scipy import sparse

    weighted = counts[:, kept].astype(np.float32)
    weighted.data = (1 + np.log(weighted.data)) * idf[weighted.indices]
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1))).reshape(-1)
    return (sparse.diags(1 / np.maximum(length, 1e-9)) @ weighted).tocsr().astype(np.float32)
