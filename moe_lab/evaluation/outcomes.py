"""Measuring outcome tables: every candidate on the same text, each run alone on whole sequences."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from moe_lab.compose.model import ComposedModel
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
    arrays = model.arrays()
    losses, hits, hiddens, started = [], [], [], time.perf_counter()
    for done, batch in enumerate(batches, start=1):
        hidden = model.enter(arrays, batch)
        loss, hit = model.run_candidates(arrays, batch, hidden)
        losses.append(loss)
        hits.append(hit)
        hiddens.append(to_host(normalised(hidden)))
        report(done, (time.perf_counter() - started) / done)
    counted = np.concatenate([batch.loss_mask for batch in batches]) > 0
    segments = np.concatenate([batch.segment_ids for batch in batches])
    table = OutcomeTable(
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
    return table, np.concatenate(hits)
