"""Batches for training, a pure function of the step, and for evaluation, in fixed order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from moe_lab.data.corpus import Corpus
from moe_lab.data.documents import Split
from moe_lab.data.packing import Batch, Int64, Stream, covering_rows, pack_rows, stream_of, whole_rows
from moe_lab.errors import LabError

# Domains take turns in a cycle of this many rows, so a weight is met to within one part in this many.
_CYCLE = 4096


class TrainBatches:
    """Training batches that mix domains by weight.

    Row n of a domain is row `n % rows` of epoch `n // rows`. Each epoch shuffles the documents, packs them
    anew and shuffles the rows: every whole row once an epoch. Domains take turns evenly, so all batches have
    nearly the same mix.

    Args:
        corpora: the domains; their index is `Batch.domain`.
        weights: share of rows for each, in any unit; equal shares if None. 0 leaves a domain out.
        batch_size: rows of a batch.
        seq_len: positions of a row.
        seed: of all shuffles.

    Raises:
        LabError: weights that cannot be shares, or a domain with less text than one row.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: Sequence[float] | None,
        batch_size: int,
        seq_len: int,
        seed: int,
    ) -> None:
        assert corpora
        assert min(batch_size, seq_len) > 0
        assert seed >= 0
        self.batch_size, self.seq_len, self._seed = batch_size, seq_len, seed
        self._splits = [corpus.splits["train"] for corpus in corpora]
        self._tokenizers = [corpus.tokenizer for corpus in corpora]
        shares = _shares([corpus.name for corpus in corpora], weights)
        self.rows_per_epoch = [whole_rows(split, seq_len) for split in self._splits]
        for corpus, rows, share in zip(corpora, self.rows_per_epoch, shares, strict=True):
            if share and not rows:
                tokens = corpus.splits["train"].tokens
                raise LabError(
                    f'data "{corpus.name}": {tokens} training tokens do not fill a row of '
                    f"seq_len={seq_len}; lower seq_len or add text"
                )
        self._turns, self._turn_index, self._rows_per_cycle = _turns(shares)
        # Two epochs of each, because a batch can lie across the border of two.
        self._epoch = lru_cache(maxsize=2 * len(corpora))(self._shuffled)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0; the same for every call, process and machine."""
        drawn = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        cycle, turn = drawn // _CYCLE, drawn % _CYCLE
        domain = self._turns[turn]
        number = cycle * self._rows_per_cycle[domain] + self._turn_index[turn]
        epoch, row = np.divmod(number, np.array(self.rows_per_epoch, np.int64).clip(1)[domain])
        parts, places = [], []
        for index, which in sorted(set(zip(domain.tolist(), epoch.tolist(), strict=True))):
            place = np.flatnonzero((domain == index) & (epoch == which))
            stream, shuffled = self._epoch(index, which)
            numbers = shuffled[row[place]]
            split, tokenizer = self._splits[index], self._tokenizers[index]
            parts.append(pack_rows(split, stream, numbers, self.seq_len, index, tokenizer=tokenizer, count_ends=True))
            places.append(place)
        back = np.argsort(np.concatenate(places))
        return Batch(*(np.concatenate(arrays)[back] for arrays in zip(*parts, strict=True)))

    def _shuffled(self, index: int, epoch: int) -> tuple[Stream, Int64]:
        generator = np.random.Generator(np.random.PCG64([self._seed, index, epoch]))
        split = self._splits[index]
        documents = generator.permutation(split.documents)
        return stream_of(split, documents), generator.permutation(self.rows_per_epoch[index])


def _shares(names: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if weights is None:
        weights = [1.0] * len(names)
    if len(weights) != len(names):
        raise LabError(f"{len(weights)} weights for {len(names)} domains ({', '.join(names)}); give one for each")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) == 0:
        raise LabError(f"weights {list(weights)}: each must be a number from 0 up, and one of them above 0")
    return [w / sum(weights) for w in weights]


def _turns(shares: Sequence[float]) -> tuple[Int64, Int64, Int64]:
    """Who draws at each turn of a cycle, how often it drew before in it, and how often each does in all."""
    counts = np.floor(np.array(shares) * _CYCLE).astype(np.int64)
    counts[(counts == 0) & (np.array(shares) > 0)] = 1
    counts[np.argmax(counts)] += _CYCLE - counts.sum()
    domain = np.repeat(np.arange(len(shares)), counts)
    index = np.concatenate([np.arange(n) for n in counts])
    spread = np.argsort((index + 0.5) / counts[domain], kind="stable")
    return domain[spread], index[spread], counts


def eval_batches(
    corpus: Corpus,
    split: Split,
    batch_size: int,
    seq_len: int,
    limit_rows: int | None = None,
    domain_index: int = 0,
) -> list[Batch]:
    """A split in fixed order to measure on: every token of every document is a counted target exactly once.

    The ends of documents are targets that do not count. All batches have one shape: what is left over is padding, with
    segment 0 and loss mask 0.

    Args:
        corpus: the domain.
        split: which part of it.
        batch_size: rows of a batch.
        seq_len: positions of a row.
        limit_rows: at most this many rows, spread evenly over the split.
        domain_index: goes to `Batch.domain`.
    """
    assert min(batch_size, seq_len) > 0
    assert limit_rows is None or limit_rows > 0
    part = corpus.splits[split]
    stream = stream_of(part, np.arange(part.documents))
    total = covering_rows(part, seq_len)
    wanted = min(limit_rows or total, total)
    rows = np.arange(wanted, dtype=np.int64) * total // max(wanted, 1)
    padding = np.full(-wanted % batch_size, total, np.int64)
    batches = np.concatenate([rows, padding]).reshape(-1, batch_size)
    tokenizer = corpus.tokenizer
    return [
        pack_rows(part, stream, numbers, seq_len, domain_index, tokenizer=tokenizer, count_ends=False)
        for numbers in batches
    ]
