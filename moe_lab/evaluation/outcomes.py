"""Measuring outcome tables: every candidate on the same text, each run alone on whole sequences."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from moe_lab.compose.model import ComposedModel, ModelArrays
from moe_lab.data import Batch, Corpus, eval_batches
from moe_lab.data.documents import Split
from moe_lab.parallel.mesh import to_host
from moe_lab.routing.outcomes import OutcomeTable
from moe_lab.routing.router import normalised

Report = Callable[[int, float], None]
"""Called with the batches done and the seconds that one takes."""


def domain_batches(corpora: Sequence[Corpus], split: Split, rows: int, batch_size: int, seq_len: int) -> list[Batch]:
    """The same number of rows of each domain, in order."""
    return [
        batch
        for index, corpus in enumerate(corpora)
        for batch in eval_batches(corpus, split, batch_size, seq_len, rows, domain_index=index)
    ]


def measure_outcomes(
    model: ComposedModel,
    corpora: Sequence[Corpus],
    batches: Sequence[Batch],
    report: Report = lambda *_: None,
) -> tuple[OutcomeTable, np.ndarray]:
    """Runs every candidate on every batch. The router of the model is not asked, only its candidates are.

    Returns:
        The table of all rows of all batches, padding rows included, and greedy hits, bool[N, S, C].
    """
    hits = []

    def run(arrays: ModelArrays, batch: Batch, hidden_BSD: jax.Array) -> np.ndarray:
        loss_BSC, hit_BSC = model.run_candidates(arrays, batch, hidden_BSD)
        hits.append(hit_BSC)
        return loss_BSC

    return _tabulated(model, corpora, batches, run, report), np.concatenate(hits)


def complete_outcomes(
    model: ComposedModel,
    corpora: Sequence[Corpus],
    batches: Sequence[Batch],
    known: OutcomeTable,
    report: Report = lambda *_: None,
) -> OutcomeTable:
    """The table of `measure_outcomes`, of which some candidates were measured before on the rows of some domains.

    Args:
        model: with all candidates.
        corpora: all domains.
        batches: their rows, those of a domain in the order in which they were measured before.
        known: the table from before, without rows that are all padding.
        report: as for `measure_outcomes`.
    """
    names = model.candidates.names
    old = [names.index(name) for name in known.space.names]
    new = [index for index in range(len(names)) if index not in old]
    rows = {name: list(np.flatnonzero(known.group_N == index)) for index, name in enumerate(known.groups)}

    def run(arrays: ModelArrays, batch: Batch, hidden_BSD: jax.Array) -> np.ndarray:
        name = corpora[int(batch.domain[0])].name
        if name not in rows:
            return model.run_candidates(arrays, batch, hidden_BSD)[0]
        counted_B = np.asarray(batch.loss_mask).any(axis=1)
        again = [rows[name].pop(0) for _ in range(counted_B.sum())]
        same = np.array_equal(known.tokens_NS[again], batch.tokens[counted_B])
        assert same, f"{name}: the same text, cut the same way, gives the same rows"
        loss_BSC = np.zeros((*batch.tokens.shape, len(names)), np.float32)
        loss_BSC[..., new] = model.run_candidates(arrays, batch, hidden_BSD, new)[0]
        for candidate, column in enumerate(old):
            loss_BSC[counted_B, :, column] = known.loss_NSC[again, :, candidate]
        return loss_BSC

    return _tabulated(model, corpora, batches, run, report)


def _tabulated(
    model: ComposedModel,
    corpora: Sequence[Corpus],
    batches: Sequence[Batch],
    run: Callable[[ModelArrays, Batch, jax.Array], np.ndarray],
    report: Report,
) -> OutcomeTable:
    """The losses that `run` gives for each batch, beside what else a table holds."""
    arrays = model.arrays()
    losses, hiddens, started = [], [], time.perf_counter()
    for done, batch in enumerate(batches, start=1):
        hidden = model.enter(arrays, batch)
        losses.append(run(arrays, batch, hidden))
        hiddens.append(to_host(normalised(hidden)))
        report(done, (time.perf_counter() - started) / done)
    counted = np.concatenate([batch.loss_mask for batch in batches]) > 0
    segments = np.concatenate([batch.segment_ids for batch in batches])
    return OutcomeTable(
        space=model.candidates,
        groups=tuple(corpus.name for corpus in corpora),
        loss_NSC=np.concatenate(losses),
        hidden_NSD=np.concatenate(hiddens),
        tokens_NS=np.concatenate([batch.tokens for batch in batches]),
        # The end of a document is no outcome; what predicts it is the last token of its document.
        segment_ids_NS=np.where(counted, segments, 0).astype(np.int32),
        bytes_NS=np.concatenate([batch.target_bytes for batch in batches]),
        group_N=np.concatenate([batch.domain for batch in batches]),
    )
