"""Training batches: a pure function of the step, whole epochs, exact shares, no leaks between documents."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from subprocess import CompletedProcess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.data import Batch, ByteTokenizer, Corpus, TrainBatches
from moe_lab.data.corpus import TokenSplit
from moe_lab.errors import LabError

LENGTHS = st.lists(st.integers(2, 30), min_size=1, max_size=12)


def numbered_corpus(lengths: list[int], first: int = 0) -> Corpus:
    """A corpus whose every token is another number, counted from `first`."""
    total = sum(lengths)
    split = TokenSplit(
        ids=np.arange(first, first + total, dtype=np.int32),
        nbytes=np.ones(total, np.int32),
        answer=np.zeros(total, bool),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        levels=np.full(len(lengths), -1, np.int32),
    )
    return Corpus(f"c{first}", ByteTokenizer(), {"train": split}, "sha256-0")


def same(first: Batch, second: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.slow
@given(LENGTHS, st.integers(1, 20), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_holds_every_token_once_up_to_the_row_cut(lengths, seq_len, batch_size, seed) -> None:
    corpus = numbered_corpus(lengths)
    total = sum(lengths)
    rows = total // seq_len
    if rows == 0:
        with pytest.raises(LabError, match="do not fill a row"):
            TrainBatches([corpus], None, batch_size, seq_len, seed)
        return
    batches = TrainBatches([corpus], None, batch_size, seq_len, seed)
    drawn = np.concatenate([batches.batch(s).tokens for s in range(-(-3 * rows // batch_size))])
    for epoch in range(3):
        tokens = drawn[epoch * rows : (epoch + 1) * rows].ravel()
        assert len(set(tokens.tolist())) == len(tokens) == rows * seq_len
        assert 0 <= total - len(tokens) < seq_len


@given(LENGTHS, st.integers(1, 20), st.integers(0, 3))
def test_nothing_leaks_between_documents(lengths: list[int], seq_len: int, seed: int) -> None:
    corpus = numbered_corpus(lengths)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths) - 1
    if sum(lengths) < seq_len:
        return
    batch = TrainBatches([corpus], None, 4, seq_len, seed).batch(5)
    for r in range(4):
        tokens, targets = batch.tokens[r], batch.targets[r]
        documents = document_of[targets]
        assert (batch.loss_mask[r] == 1).all()
        assert (batch.target_bytes[r] == 1).all()
        first = np.isin(targets - 1, [-1, *ends])
        assert np.isin(tokens[first], ends).all()
        assert (tokens[~first] == targets[~first] - 1).all()
        segments = batch.segment_ids[r]
        for segment in set(segments.tolist()):
            inside = segments == segment
            assert len(set(documents[inside])) == 1
            assert (np.diff(targets[inside]) == 1).all()
            assert batch.positions[r][inside].tolist() == list(range(inside.sum()))
        assert len(set(segments.tolist())) == len(set(documents.tolist())) == segments.max()


def test_epochs_and_seeds_differ_and_repeated_calls_do_not() -> None:
    corpus = numbered_corpus([20] * 50)
    batches, again = (TrainBatches([corpus], None, 10, 10, seed=0) for _ in range(2))
    assert batches.rows_per_epoch == [100]
    late, early = batches.batch(123), batches.batch(3)
    assert same(early, again.batch(3))
    assert same(late, again.batch(123))
    assert not same(batches.batch(0), batches.batch(10))
    assert not same(batches.batch(0), TrainBatches([corpus], None, 10, 10, seed=1).batch(0))


def test_the_documents_of_an_epoch_are_packed_anew() -> None:
    batches = TrainBatches([numbered_corpus([7] * 60)], None, 1, 10, seed=0)
    neighbours = [
        {tuple(row) for step in range(41) for row in batches.batch(41 * epoch + step).tokens} for epoch in (0, 1)
    ]
    assert len(neighbours[0] & neighbours[1]) < 10


@settings(max_examples=15)
@given(st.lists(st.floats(0.05, 10), min_size=1, max_size=5))
def test_domains_share_rows_by_weight(weights: list[float]) -> None:
    corpora = [numbered_corpus([50] * 20, first=10_000 * index) for index in range(len(weights))]
    batches = TrainBatches(corpora, weights, batch_size=64, seq_len=8, seed=0)
    counts: Counter[int] = Counter()
    for step in range(64):
        batch = batches.batch(step)
        assert (batch.tokens // 10_000 == batch.domain[:, None]).all()
        now = Counter(batch.domain.tolist())
        counts += now
        for index, weight in enumerate(weights):
            assert abs(now[index] - 64 * weight / sum(weights)) < 2 + len(weights) / 2
    for index, weight in enumerate(weights):
        assert counts[index] == pytest.approx(4096 * weight / sum(weights), abs=len(weights))


def test_domains_take_turns_equally_by_default_and_a_zero_leaves_one_out() -> None:
    corpora = [numbered_corpus([50] * 20), numbered_corpus([500], 10_000), numbered_corpus([2], 20_000)]
    halves = TrainBatches(corpora[:2], None, 16, 8, 0)
    assert all(halves.batch(step).domain.tolist() == [0, 1] * 8 for step in range(20))
    without = TrainBatches(corpora, [1, 1, 0], 16, 8, 0)
    assert {int(d) for step in range(300) for d in without.batch(step).domain} == {0, 1}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "1 weights for 2 domains \\(c0, c100\\); give one for each"),
        ([1.0, -1.0], "weights \\[1.0, -1.0\\]: each must be a number from 0 up"),
        ([0.0, 0.0], "one of them above 0"),
        ([1.0, float("nan")], "each must be a number"),
    ],
)
def test_bad_weights(weights: list[float], message: str) -> None:
    with pytest.raises(LabError, match=message):
        TrainBatches([numbered_corpus([50]), numbered_corpus([50], 100)], weights, 4, 8, 0)


def test_too_little_text_for_a_row() -> None:
    with pytest.raises(LabError, match='data "c0": 5 training tokens do not fill a row of seq_len=8; lower'):
        TrainBatches([numbered_corpus([5])], None, 4, 8, 0)


PROGRAM = """
import hashlib, json
from pathlib import Path
from moe_lab.data import ByteTokenizer, DataSpec, TrainBatches, load_corpus
from moe_lab.data.spec import ExercisesSource, PydocSource

def digests():
    corpora = [
        load_corpus(DataSpec(name=name, sources=(source,), heldout=0.3), ByteTokenizer(), Path())
        for name, source in (("e", ExercisesSource(count=50)), ("p", PydocSource()))
    ]
    batches = TrainBatches(corpora, [2, 1], batch_size=4, seq_len=64, seed=3)
    drawn = [b"".join(array.tobytes() for array in batches.batch(step)) for step in (0, 7, 5000)]
    return [corpus.digest for corpus in corpora] + [hashlib.sha256(batch).hexdigest() for batch in drawn]
"""


@pytest.mark.slow
@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_every_process_makes_the_same_batches(python: Callable[..., CompletedProcess[str]], hash_seed: str) -> None:
    namespace: dict[str, Callable[[], list[str]]] = {}
    exec(PROGRAM, namespace)
    done = python("-c", PROGRAM + "print(json.dumps(digests()))", env={"PYTHONHASHSEED": hash_seed})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == namespace["digests"]()


def test_batches_of_a_seed_stay_what_they_are() -> None:
    """A change here changes every run: it is a new format, not a fix."""
    batch = TrainBatches([numbered_corpus([20] * 50)], None, 4, 16, seed=0).batch(3)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in batch)).hexdigest()
    assert digest[:16] == "6ebc381a4d2392c1"
