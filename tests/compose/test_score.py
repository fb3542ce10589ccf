"""One text through a composed model: what is said of it is what the model computes, token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flax import nnx

from moe_lab.compose.model import ComposedModel
from moe_lab.compose.parts import load_trunk
from moe_lab.compose.score import ScoredText, score_text
from moe_lab.errors import LabError
from tests.compose.published import FIXED, MODULES, Published

pytestmark = pytest.mark.slow

TEXT = "for i in range(3): print(i)  # naïve 中文\n"
OUT = "west/sums"


@pytest.fixture(scope="module")
def model(published: Published) -> ComposedModel:
    return published.model(published.lock("lab/gain", MODULES, backend="reference"))


@pytest.fixture(scope="module")
def scored(model: ComposedModel) -> ScoredText:
    return score_text(model, TEXT)


def test_losses_are_those_of_the_logits_and_bits_those_of_the_losses(scored: ScoredText) -> None:
    logits = scored.logits[:-1].astype(np.float64)
    log_sum = np.log(np.exp(logits).sum(-1))
    expected = log_sum - logits[np.arange(len(logits)), scored.tokens_T]
    np.testing.assert_allclose(scored.loss_T, expected, rtol=1e-5)
    assert scored.bits_per_byte == pytest.approx(expected.sum() / math.log(2) / len(TEXT.encode()), rel=1e-6)
    assert scored.logits.shape == (len(TEXT.encode()) + 1, 257)
    assert "".join(scored.pieces) == TEXT


def test_where_nothing_runs_it_is_the_bare_trunk_after_an_end_of_document(published: Published) -> None:
    model = published.model(published.lock({**FIXED, "candidate": "trunk"}, MODULES))
    scored = score_text(model, TEXT)
    trunk = load_trunk(published.registry, published.trunk)
    tokens = np.array([[trunk.tokenizer.eos_id, *TEXT.encode()]], np.int32)
    logits = nnx.merge(trunk.graph, trunk.state)(tokens, np.ones_like(tokens), np.arange(tokens.shape[1])[None])
    np.testing.assert_allclose(scored.logits, logits[0], rtol=1e-4, atol=1e-5)
    assert not scored.width_TK.any()
    assert (scored.multiply_adds_T == 0).all()


def test_leaving_a_module_out_is_composing_without_it(published: Published, model: ComposedModel) -> None:
    others = tuple(name for name in MODULES if name != OUT)
    smaller = published.model(published.lock("lab/gain", others, backend="reference"))
    left_out, composed = score_text(model, TEXT, without=[OUT]), score_text(smaller, TEXT)
    assert (left_out.logits.view(np.uint32) == composed.logits.view(np.uint32)).all()
    used = left_out.width_TK > 0
    assert OUT not in {left_out.modules[expert] for expert in left_out.expert_TK[used]}


def test_a_price_that_nothing_is_worth_buys_nothing(model: ComposedModel, scored: ScoredText) -> None:
    nothing = score_text(model, TEXT, price=1e9)
    assert scored.width_TK.any()
    assert not nothing.width_TK.any()
    assert (nothing.multiply_adds_T == model.router.multiply_adds).all()
    assert scored.multiply_adds_T.sum() > nothing.multiply_adds_T.sum()


def test_what_comes_later_changes_nothing_before(model: ComposedModel, scored: ScoredText) -> None:
    longer = score_text(model, TEXT + "x" * 100)  # another compiled length
    np.testing.assert_allclose(longer.loss_T[: len(scored.loss_T)], scored.loss_T, rtol=1e-4)
    np.testing.assert_array_equal(longer.expert_TK[: len(scored.loss_T)], scored.expert_TK)


def test_texts_of_similar_length_share_a_program(model: ComposedModel) -> None:
    from moe_lab.compose import model as model_module

    score_text(model, "a")
    programs = model_module._composed_with_logits._cache_size()
    score_text(model, "another text", price=0.1, without=[OUT], domain="code")
    assert model_module._composed_with_logits._cache_size() == programs


def test_mistakes_are_named(published: Published, model: ComposedModel) -> None:
    with pytest.raises(LabError, match="no text to score"):
        score_text(model, "")
    with pytest.raises(LabError, match='cannot leave out "west/sum"'):
        score_text(model, TEXT, without=["west/sum"])
    oracle = published.model(published.lock({"type": "oracle"}, MODULES))
    with pytest.raises(LabError, match="measured outcomes"):
        score_text(oracle, TEXT)
