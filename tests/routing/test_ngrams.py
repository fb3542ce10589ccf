"""Rows of n-grams against a brute force over strings of ids, and what is counted on them against a dense solution."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lab.routing.ngrams import fit_ngrams, ngram_rows

rows_of = jax.jit(ngram_rows, static_argnums=(2, 3))


def by_definition(ids: list[int], buckets: int) -> int:
    """The row of one n-gram, newest token first, in Python's whole numbers."""
    found = 0
    for number in ids:
        found = ((found ^ number) * 0x9E3779B1) % 2**32
        found ^= found >> 15
    return ((found * 0x85EBCA6B) % 2**32 >> 16) % buckets + (len(ids) - 1) * buckets


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids up to the largest vocabularies, and documents of any length."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, rng.choice([3, 257, 200_000]), (2, 9)).astype(np.int32)
    return tokens, np.sort(rng.integers(0, 4, (2, 9)), axis=1).astype(np.int32)


@given(seed=st.integers(0, 2**32 - 1), buckets=st.sampled_from((1, 7, 4096, 65536)))
@settings(max_examples=20, deadline=None)
def test_a_row_is_the_hash_of_the_last_ids_of_the_document(seed: int, buckets: int) -> None:
    tokens, segments = drawn(seed)
    got = np.asarray(rows_of(tokens, segments, 4, buckets))
    assert got.dtype == np.int32
    for row, place in np.ndindex(2, 9):
        back = [
            int(tokens[row, at]) + 1 if at >= 0 and segments[row, at] == segments[row, place] else 0
            for at in range(place, place - 4, -1)
        ]
        assert got[row, place].tolist() == [by_definition(back[:n], buckets) for n in (1, 2, 3, 4)]


@given(seed=st.integers(0, 2**32 - 1), place=st.integers(0, 8))
@settings(max_examples=20, deadline=None)
def test_it_sees_neither_what_comes_later_nor_other_documents(seed: int, place: int) -> None:
    tokens, segments = drawn(seed)
    before = np.asarray(rows_of(tokens, segments, 4, 4096))
    later = np.arange(9) >= place
    after = np.asarray(rows_of(np.where(later, tokens + 1, tokens), np.where(later, 9, segments), 4, 4096))
    np.testing.assert_array_equal(before[:, ~later], after[:, ~later])
    others = segments != segments[0, place]
    apart = np.asarray(rows_of(np.where(others, tokens + 1, tokens), segments, 4, 4096))
    np.testing.assert_array_equal(before[~others], apart[~others])


@pytest.mark.parametrize("longest", [1, 3, 8])
def test_rows_shorter_than_the_n_grams_have_all_of_them(longest: int) -> None:
    got = np.asarray(ngram_rows(np.array([[5, 6]]), np.ones((1, 2), int), longest, 100))
    for n in range(longest):
        assert (got[..., n] // 100 == n).all()


@given(seed=st.integers(0, 2**32 - 1), lengths=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_what_n_grams_add_is_the_ridge_solution(seed: int, lengths: int) -> None:
    rng, buckets, shrinkage = np.random.default_rng(seed), 5, 3.0
    rows = rng.integers(0, buckets, (40, lengths)) + buckets * np.arange(lengths)
    values, weight = rng.normal(size=(40, 2)), rng.choice([0.0, 0.3, 1.0], 40)
    mean, table = fit_ngrams(rows, values, weight, lengths * buckets, shrinkage, sweeps=300)
    ends = np.zeros((40, lengths * buckets))
    np.put_along_axis(ends, rows, 1.0, axis=1)
    centre = weight @ values / max(weight.sum(), 1e-9)
    left = ends.T @ (weight[:, None] * ends) + shrinkage * np.eye(lengths * buckets)
    np.testing.assert_allclose(mean, centre, atol=1e-12)
    np.testing.assert_allclose(table, np.linalg.solve(left, ends.T @ (weight[:, None] * (values - centre))), atol=1e-6)


def test_an_n_gram_is_half_believed_after_as_many_tokens_as_the_shrinkage() -> None:
    values = np.array([[3.0]] * 4 + [[-3.0]] * 4)
    rows = np.array([[0]] * 4 + [[1]] * 4)
    mean, table = fit_ngrams(rows, values, np.ones(8), table_rows=3, shrinkage=4.0)
    np.testing.assert_allclose(mean, [0.0])
    np.testing.assert_allclose(table[:, 0], [1.5, -1.5, 0.0])  # what was never seen says nothing
