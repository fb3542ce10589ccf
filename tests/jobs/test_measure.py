"""Held-out figures against documents taken one at a time, and what a module's training and shrinking count."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_lab.compose.lockfile import pin
from moe_lab.compose.parts import LoadedTrunk, find_module, load_trunk
from moe_lab.data import ByteTokenizer, Document, build_corpus, eval_batches
from moe_lab.evaluation.outcomes import measure_outcomes
from moe_lab.experts.kinds import DEFAULT, find_kind
from moe_lab.experts.weights import ExpertWeights
from moe_lab.jobs.measure import bits_per_byte, layer_statistics, trunk_losses
from moe_lab.jobs.objectives import nested_widths
from moe_lab.jobs.sequences import domain_bits_per_byte
from tests.compose.published import FIXED, Published, publish_all

TEXTS = ("ab", "c", "3+4 = 7\n", "naïve", "x", "the fox\n", "a document longer than the others are")
END = ByteTokenizer.eos_id


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish_all(tmp_path_factory.mktemp("measure") / "lab")


@pytest.fixture(scope="module")
def trunk(published: Published) -> LoadedTrunk:
    registry = published.registry
    return load_trunk(registry, pin(registry, "lab/trunk", "trunk"))


@pytest.fixture(scope="module")
def module(published: Published) -> ExpertWeights:
    registry = published.registry
    return find_module(registry, pin(registry, "north/code", "module")).weights


def alone_bits_per_byte(trunk: LoadedTrunk, texts: tuple[str, ...]) -> float:
    """Each document alone after one end token: the log-likelihood of its tokens over its bytes."""
    model, nats, size = nnx.merge(trunk.graph, trunk.state), 0.0, 0
    for text in texts:
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        read = np.full((1, 40), END, np.int32)  # what comes after the document is seen by none of its tokens
        read[0, 1 : len(ids)] = ids[:-1]
        logits = model(jnp.asarray(read), jnp.ones_like(read), jnp.arange(40, dtype=jnp.int32)[None])
        log_p = jax.nn.log_softmax(logits[0].astype(jnp.float32))
        nats -= float(log_p[np.arange(len(ids)), ids].sum())
        size += len(ids)
    return nats / math.log(2) / size


@pytest.mark.slow
def test_bits_per_byte_are_those_of_each_document_alone(published: Published, trunk: LoadedTrunk) -> None:
    corpus = build_corpus("short", [Document(text, "t", split="test") for text in TEXTS], ByteTokenizer())
    batches = eval_batches(corpus, "test", 1, 80)
    assert len(batches) == 1
    expected = alone_bits_per_byte(trunk, TEXTS)
    assert bits_per_byte(trunk_losses(trunk.graph, trunk.state), batches) == pytest.approx(expected, rel=1e-5)
    table, _ = measure_outcomes(published.model(published.lock(FIXED)), [corpus], batches)
    assert domain_bits_per_byte(table)[0, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_tokens_that_do_not_count_change_nothing_that_shrinking_ranks_by(
    trunk: LoadedTrunk, module: ExpertWeights
) -> None:
    corpus = build_corpus("short", [Document(text, "t", split="test") for text in TEXTS], ByteTokenizer())
    [batch] = eval_batches(corpus, "test", 2, 80)
    padded = batch.loss_mask == 0
    assert padded.sum() > 80
    noise = np.random.default_rng(0).integers(0, 256, batch.tokens.shape).astype(np.int32)
    dirty = batch._replace(tokens=np.where(batch.segment_ids == 0, noise, batch.tokens))
    clean, other = (layer_statistics(trunk, module, find_kind(DEFAULT), [some]) for some in (batch, dirty))
    [whole] = eval_batches(corpus, "test", 1, 80)
    single = layer_statistics(trunk, module, find_kind(DEFAULT), [whole])
    for layer, statistics in clean.items():
        for field in ("mean_abs_F", "mean_square_F"):
            value = getattr(statistics, field)
            np.testing.assert_allclose(getattr(other[layer], field), value, rtol=1e-5)
            np.testing.assert_allclose(getattr(single[layer], field), value, rtol=1e-5)
            assert (value > 0).all()


def test_the_widest_rung_runs_its_share_of_the_rows_and_the_others_the_rest_evenly() -> None:
    drawn = np.asarray(nested_widths(jax.random.key(0), 20_000, (8, 20, 64), 8, 0.6))
    share = {width: float((drawn == width).mean()) for width in (1, 3, 8)}
    assert sum(share.values()) == pytest.approx(1.0)
    assert share[8] == pytest.approx(0.6, abs=0.02)
    assert share[1] == pytest.approx(0.2, abs=0.02)
    assert share[3] == pytest.approx(0.2, abs=0.02)


def test_a_ladder_of_one_rung_always_runs_it() -> None:
    assert set(np.asarray(nested_widths(jax.random.key(0), 50, (20,), 8, 0.5)).tolist()) == {3}
