"""Items that are alike, and how alike they are."""

from __future__ import annotations

import numpy as np

from moe_lab.questions.features import fit_features, raw_features
from moe_lab.questions.neighbours import Embedding, Neighbours, fit_embedding
from moe_lab.questions.table import ItemTable, make_table
from tests.questions.synthetic import LARGE, QUICK, SMALL, word_table


def embedded(table: ItemTable) -> tuple[Embedding, np.ndarray]:
    raw = raw_features(table, QUICK.features)
    features = fit_features(raw, QUICK.features, len(table.groups))
    x_NX = features(raw)
    embedding = fit_embedding(x_NX, features, 6, seed=0)
    return embedding, embedding(x_NX)


def test_every_item_has_a_vector_of_length_one() -> None:
    """So that alike is a cosine: with groups and numbers beside the text, its own length is not one."""
    _, at_NW = embedded(word_table(80))
    np.testing.assert_allclose(np.linalg.norm(at_NW, axis=1), 1, atol=1e-5)


def test_far_numbers_do_not_make_an_item_everybodys_neighbour() -> None:
    """Ten times further out in its numbers, an item is no more alike to all the others than they are to themselves."""
    table = word_table(80)
    rng = np.random.default_rng(0)
    numbers = {"length": np.where(np.arange(80) == 0, 50.0, rng.normal(size=80))}
    far = make_table(
        "t", (SMALL, LARGE), table.outcome_NC, [1, 10], text=table.text_N, group=table.group_N, numbers=numbers
    )
    _, at_NW = embedded(far)
    cosine_NN = at_NW @ at_NW.T
    assert cosine_NN.max() <= 1 + 1e-5
    assert (cosine_NN.argmax(axis=1) == np.arange(80)).all()


def test_the_group_and_the_numbers_count_beside_the_text() -> None:
    table = word_table(80)
    embedding, at_NW = embedded(table)
    text = embedding.direction_ZW.shape[1]
    assert embedding.num_groups == 2
    grouped = at_NW[:, text : text + 2]
    np.testing.assert_array_equal(grouped.argmax(axis=1), table.group_N)
    # The text has length 1 before all is scaled to 1, the group 0.3.
    ratio = grouped.max(axis=1) / np.linalg.norm(at_NW[:, :text], axis=1)
    np.testing.assert_allclose(ratio, 0.3, rtol=1e-4)


def test_the_mean_is_weighted_by_how_alike_items_are() -> None:
    embedding, at_NW = embedded(table := word_table(600))
    raw = raw_features(table, QUICK.features)
    x_NX = fit_features(raw, QUICK.features, 2)(raw)
    near = Neighbours(embedding, at_NW[:50], table.quality_NC[:50].astype(np.float32))
    # More items than are looked at at once.
    found = near(x_NX)
    weight_NM = np.exp(10 * (at_NW.astype(float) @ at_NW[:50].T.astype(float) - 1))
    expected = weight_NM @ table.quality_NC[:50] / weight_NM.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert near(x_NX[:0]).shape == (0, 2)


def test_fewer_items_than_directions_have_what_there_is() -> None:
    embedding, at_NW = embedded(word_table(4))
    assert embedding.direction_ZW.shape[1] <= 3
    np.testing.assert_allclose(np.linalg.norm(at_NW, axis=1), 1, atol=1e-5)
