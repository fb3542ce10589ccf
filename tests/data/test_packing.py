"""Packing against an oracle in plain Python, and the sums that bits per byte rest on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.data import Batch, ByteTokenizer, Corpus, Document, Tokenizer, build_corpus, eval_batches, load_tokenizer
from moe_lab.data.corpus import TokenSplit
from moe_lab.data.exercises import FAMILY_NAMES, exercise_documents
from moe_lab.data.spec import HFTokenizerSpec

LENGTHS = st.lists(st.integers(2, 30), min_size=1, max_size=12)


def corpus_of(*texts: str, tokenizer: Tokenizer | None = None) -> Corpus:
    documents = [Document(text, "t", split="test") for text in texts]
    return build_corpus("c", documents, tokenizer or ByteTokenizer())


def numbered_split(lengths: list[int]) -> TokenSplit:
    """Documents of the given lengths (their end token included) in which every token is another number."""
    total = sum(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    nbytes = np.arange(total, dtype=np.int32) % 5
    nbytes[starts[1:] - 1] = 0
    return TokenSplit(
        ids=np.arange(1000, 1000 + total, dtype=np.int32),
        nbytes=nbytes,
        answer=np.arange(total) % 3 == 0,
        starts=starts,
        levels=np.arange(len(lengths), dtype=np.int32) - 1,
    )


def oracle(split: TokenSplit, row: int, seq_len: int) -> list[tuple[int, ...]]:
    """The cells of a row: token, target, segment, position, mask, bytes, level, answer."""
    stream = [
        (document, place)
        for document in range(split.documents)
        for place in range(split.starts[document], split.starts[document + 1])
    ]
    cells: list[tuple[int, ...]] = []
    segment, position = 0, 0
    for column in range(seq_len):
        at = row * seq_len + column
        if at >= len(stream):
            cells.append((0, 0, 0, 0, 0, 0, -1, 0))
            continue
        document, target = stream[at]
        if column == 0 or stream[at - 1][0] != document:
            segment, position = segment + 1, 0
        before = stream[at - 1][1] if at else stream[-1][1]
        counted = int(target + 1 != split.starts[document + 1])
        size, answer, level = int(split.nbytes[target]), int(split.answer[target]), int(split.levels[document])
        read, predicted = int(split.ids[before]), int(split.ids[target])
        cells.append((read, predicted, segment, position, counted, size, level, answer))
        position += 1
    return cells


@pytest.mark.slow
@given(LENGTHS, st.integers(1, 20), st.integers(1, 4))
def test_eval_rows_are_what_the_oracle_packs(lengths: list[int], seq_len: int, batch_size: int) -> None:
    split = numbered_split(lengths)
    corpus = Corpus("c", ByteTokenizer(), {"test": split}, "sha256-0")
    batches = eval_batches(corpus, "test", batch_size, seq_len, domain_index=7)
    rows = -(-split.tokens // seq_len)
    assert len(batches) == -(-rows // batch_size)
    for index, batch in enumerate(batches):
        check_shapes(batch, batch_size, seq_len)
        assert (batch.domain == 7).all()
        for r in range(batch_size):
            cells = zip(
                batch.tokens[r],
                batch.targets[r],
                batch.segment_ids[r],
                batch.positions[r],
                batch.loss_mask[r],
                batch.target_bytes[r],
                batch.level[r],
                batch.answer_mask[r],
                strict=True,
            )
            expected = oracle(split, index * batch_size + r, seq_len)
            if index * batch_size + r >= rows:
                expected = [(0, 0, 0, 0, 0, 0, -1, 0)] * seq_len
            assert [tuple(int(value) for value in cell) for cell in cells] == expected


def check_shapes(batch: Batch, rows: int, seq_len: int) -> None:
    for name, array in batch._asdict().items():
        assert array.shape == ((rows,) if name == "domain" else (rows, seq_len)), name
        assert array.dtype == (np.float32 if name in ("loss_mask", "answer_mask") else np.int32), name


@pytest.mark.slow
@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8), st.integers(1, 30))
@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_every_byte_is_counted_once_and_no_end(
    kind: str, request: pytest.FixtureRequest, texts: list[str], seq_len: int
) -> None:
    tokenizer: Tokenizer = ByteTokenizer() if kind == "byte" else request.getfixturevalue("bpe")
    batches = eval_batches(corpus_of(*texts, tokenizer=tokenizer), "test", 3, seq_len)
    assert sum(int(batch.target_bytes.sum()) for batch in batches) == sum(len(text.encode()) for text in texts)
    counted = np.concatenate([batch.targets[batch.loss_mask > 0] for batch in batches])
    expected = np.concatenate([tokenizer.encode(text)[0] for text in texts])
    np.testing.assert_array_equal(counted, expected)


def test_a_document_starts_after_one_end_token_that_sees_nothing_else() -> None:
    (batch,) = eval_batches(corpus_of("ab", "c"), "test", 1, 6)
    assert batch.tokens[0].tolist() == [256, ord("a"), ord("b"), 256, ord("c"), 0]
    assert batch.targets[0].tolist() == [ord("a"), ord("b"), 256, ord("c"), 256, 0]
    assert batch.segment_ids[0].tolist() == [1, 1, 1, 2, 2, 0]
    assert batch.positions[0].tolist() == [0, 1, 2, 0, 1, 0]
    assert batch.loss_mask[0].tolist() == [1, 1, 0, 1, 0, 0]


def test_a_start_token_of_its_own_stands_in_front_of_every_document(bpe_folder: Path) -> None:
    tokenizer = load_tokenizer(HFTokenizerSpec(path="tokenizer.json", eos="<|endoftext|>", start="<mine>"), bpe_folder)
    assert tokenizer.start_id != tokenizer.eos_id
    assert tokenizer.decode([tokenizer.start_id, *tokenizer.encode("ab")[0]]) == "ab"
    (batch,) = eval_batches(corpus_of("ab", "c", tokenizer=tokenizer), "test", 1, 8)
    begins = (batch.positions[0] == 0) & (batch.segment_ids[0] > 0)
    assert batch.tokens[0][begins].tolist() == [tokenizer.start_id] * 2
    assert tokenizer.start_id not in batch.targets[0]
    assert (batch.targets[0] == tokenizer.eos_id).sum() == 2


def test_a_row_in_the_middle_of_a_document_goes_on_from_its_last_token() -> None:
    (batch,) = eval_batches(corpus_of("abcdefgh"), "test", 2, 5)
    assert bytes(batch.tokens[1][:4].astype(np.uint8)) == b"efgh"
    assert batch.positions[1].tolist() == [0, 1, 2, 3, 0]
    assert batch.segment_ids[1].tolist() == [1, 1, 1, 1, 0]
    assert batch.targets[1].tolist() == [ord("f"), ord("g"), ord("h"), 256, 0]
    assert batch.loss_mask[1].tolist() == [1, 1, 1, 0, 0]
    assert batch.target_bytes[1].tolist() == [1, 1, 1, 0, 0]


def test_limited_rows_are_distinct_and_spread_over_the_split() -> None:
    corpus = corpus_of("".join(chr(0x4E00 + n) for n in range(3000)))
    everything = np.concatenate([batch.tokens for batch in eval_batches(corpus, "test", 8, 10)])
    some = np.concatenate([batch.tokens for batch in eval_batches(corpus, "test", 8, 10, limit_rows=60)])
    places = [int(np.flatnonzero((everything == row).all(axis=1))[0]) for row in some[:60]]
    assert len(some) == 64
    assert places[0] == 0
    assert set(np.diff(places)) <= {15, 16}
    assert (some[60:] == 0).all()
    assert len(eval_batches(corpus, "test", 8, 10, limit_rows=10**6)) == len(eval_batches(corpus, "test", 8, 10))


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_answers_are_marked_to_their_newline(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = ByteTokenizer() if kind == "byte" else request.getfixturevalue("bpe")
    documents = list(exercise_documents(FAMILY_NAMES, (1, 3), 50, 0, 0.2))
    corpus = build_corpus("e", documents, tokenizer)
    wanted = [d for d in documents if d.split == "test"]
    answers = [line.split(" = ")[1] for d in wanted for line in d.text.splitlines(keepends=True)]
    batches = eval_batches(corpus, "test", 4, 10_000)
    marked, levels = [], []
    for batch in batches:
        for r in range(4):
            marked += batch.targets[r][batch.answer_mask[r] > 0].tolist()
            levels += batch.level[r][batch.answer_mask[r] > 0].tolist()
    assert tokenizer.decode(marked).replace(" ", "") == "".join(answers)
    expected = [d.level for d in wanted for _ in range(d.text.count("\n"))]
    if kind == "byte":
        at_newline = [level for level, target in zip(levels, marked, strict=True) if target == ord("\n")]
        assert at_newline == expected
    assert set(levels) == {1, 3}


def test_text_that_is_no_exercise_has_no_level_and_no_answers() -> None:
    (batch,) = eval_batches(corpus_of("x = 5\ny = 6\n"), "test", 1, 100)
    assert (batch.level == -1).all()
    assert not batch.answer_mask.any()


def test_an_empty_split_gives_no_batches() -> None:
    assert eval_batches(corpus_of("abc"), "validation", 2, 4) == []
