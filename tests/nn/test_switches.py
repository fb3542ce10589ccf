"""Every switch of a trunk against numpy: families of checkpoints as they set them, and what each setting changes."""

from __future__ import annotations

from typing import Any, get_args

import jax
import numpy as np
import pytest
from flax import nnx
from pydantic import ValidationError

from moe_lab.config import canonical_json
from moe_lab.nn.activations import ACTIVATIONS, KERNEL_NAMES, TRUNK_ACTIVATIONS
from moe_lab.nn.decoder import Trunk
from moe_lab.nn.spec import (
    ROUTED_ACTIVATIONS,
    Activation,
    LinearScaling,
    Llama3Scaling,
    RopeSpec,
    TrunkSpec,
    YarnScaling,
)
from tests.nn import oracle
from tests.nn.drawing import InParts
from tests.nn.test_trunk import BASE, row

DEEP: dict[str, Any] = {**BASE, "num_layers": 3, "num_kv_heads": 1, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama 3.1, with biases as Qwen2 and layers as SmolLM3": {
        "rope_scaling": Llama3Scaling(factor=8.0, original_length=30),
        "layers_without_rope": (2,),
        "rotary_fraction": 0.5,
        "attention_bias": True,
        "attention_out_bias": False,
        "ffn_bias": True,
    },
    "Gemma": {
        "activation": "gelu_tanh",
        "norm_placement": "both",
        "norm_offset": 1,
        "qk_norm": True,
        "rope_base": 1e5,
        "rope_scaling": LinearScaling(factor=8.0),
        "sliding_rope": RopeSpec(base=50.0),
        "sliding_layers": (0, 1),
        "sliding_window": 9,
        "attention_scale": 0.9,
        "attention_softcap": 1.5,
        "logit_softcap": 2.0,
        "embedding_multiplier": 2.5,
    },
    "OLMo": {
        "norm_placement": "post",
        "qk_norm": True,
        "qk_norm_over": "projection",
        "rope_scaling": YarnScaling(factor=4.0, original_length=30),
        "tie_embeddings": False,
    },
    "Granite": {
        "routed_layers": (),
        "activation": "gelu_erf",
        "rope_scaling": YarnScaling(factor=4.0, original_length=30, attention_factor=1.3, truncate=False),
        "residual_multiplier": 0.3,
        "logit_multiplier": 0.25,
    },
}
BY_SHAPE = {"attention_bias", "attention_out_bias", "ffn_bias", "norm_placement", "qk_norm", "qk_norm_over"}
"""Switches that decide which parameters there are: a trunk without them has other weights to read."""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_its_definition_and_each_of_its_switches_matters(family: str) -> None:
    spec = TrunkSpec(**{**DEEP, **FAMILIES[family]})
    graph, state = oracle.randomised(lambda: Trunk(spec, rngs=nnx.Rngs(0)))
    tokens, segments, positions = row(50, 16)
    got = jax.jit(lambda state: nnx.merge(graph, state)(tokens, segments, positions))(state)
    weights = oracle.weights_of(state)

    def expected(**changes: Any) -> np.ndarray:
        changed = spec.model_copy(update=changes)
        return oracle.logits(weights, changed, tokens[0], segments[0], positions[0])[:66]

    wanted = expected()
    np.testing.assert_allclose(got[0, :66], wanted, rtol=3e-4, atol=3e-4)
    for name in set(FAMILIES[family]) - BY_SHAPE - {"sliding_layers", "tie_embeddings", "routed_layers"}:
        default = 10**6 if name == "sliding_window" else TrunkSpec.model_fields[name].default
        assert np.abs(expected(**{name: default}) - wanted).max() > 0.02, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spec_is_the_same_read_back(family: str) -> None:
    spec = TrunkSpec(**{**DEEP, **FAMILIES[family]})
    assert TrunkSpec.model_validate_json(canonical_json(spec.model_dump(mode="json"))) == spec


def test_a_trunk_without_newer_switches_is_written_as_it_was() -> None:
    assert set(TrunkSpec(**BASE).model_dump()) == {
        *("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_width", "activation"),
        *("rope_base", "rms_norm_eps", "qk_norm", "attention_bias", "ffn_bias", "tie_embeddings", "shared_ffn"),
        *("routed_layers", "block"),
    }


def test_every_activation_that_a_spec_may_name_is_one() -> None:
    assert set(get_args(Activation)) == set(TRUNK_ACTIVATIONS)
    assert set(ROUTED_ACTIVATIONS) == set(KERNEL_NAMES)
    assert set(KERNEL_NAMES.values()) == set(ACTIVATIONS)


def test_layers_know_their_window_and_their_positions() -> None:
    spec = TrunkSpec(**DEEP, sliding_layers=(0,), sliding_window=9, layers_without_rope=(2,), rope_base=77.0)
    assert [spec.window_of(layer) for layer in range(3)] == [9, None, None]
    assert [spec.rope_of(layer) for layer in range(3)] == [RopeSpec(base=77.0), RopeSpec(base=77.0), None]
    local = spec.model_copy(update={"sliding_rope": RopeSpec(base=5.0)})
    assert local.rope_of(0) == RopeSpec(base=5.0)
    assert local.rope_of(1) == RopeSpec(base=77.0)


@pytest.mark.slow
def test_multiply_adds_are_those_that_the_compiler_counts() -> None:
    spec = TrunkSpec(d_model=128, num_layers=3, num_heads=4, num_kv_heads=2, ffn_width=512, vocab_size=1000)
    sliding = TrunkSpec(**spec.model_dump(), sliding_layers=(0, 1, 2), sliding_window=64)
    found = []
    for some in (spec, sliding):
        graph, state = nnx.split(nnx.eval_shape(lambda some=some: Trunk(some, rngs=nnx.Rngs(0), layout=InParts())))
        tokens = jax.ShapeDtypeStruct((1, 512), np.int32)
        program = jax.jit(lambda state, *inputs, graph=graph: nnx.merge(graph, state)(*inputs))
        flops = program.lower(state, tokens, tokens, tokens).compile().cost_analysis()["flops"]
        counted = sum(some.multiply_adds(layer, 512) for layer in range(3)) + some.head_multiply_adds
        found.append((flops, 2 * 512 * counted))
    for flops, counted in found:  # the compiler also counts what is no matrix product, and whole tiles of the square
        assert counted < flops < 1.15 * counted
    assert found[1][1] < found[0][1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sliding_layers": (0,)}, r"sliding_layers \[0\] and sliding_window None need each other"),
        ({"sliding_window": 4}, r"sliding_layers \[\] and sliding_window 4 need each other"),
        ({"sliding_layers": (3,), "sliding_window": 4}, r"sliding_layers \[3\] must lie in 0..2"),
        ({"layers_without_rope": (1, 0)}, r"layers_without_rope \[1, 0\] must rise without repeats"),
        ({"sliding_rope": RopeSpec()}, "sliding_rope needs sliding_layers"),
        ({"qk_norm_over": "projection"}, 'qk_norm_over "projection" needs qk_norm: true'),
        ({"rotary_fraction": 0.4}, "rotary_fraction 0.4 of head_dim 8 gives 3; it must be even"),
        ({"vocab_padding": 11}, "vocab_padding 11 must be less than vocab_size 11"),
        ({"activation": "gelu_erf"}, 'activation "gelu_erf" cannot be run by modules.*silu, gelu, gelu_tanh'),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "linear"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_frequency_factor": 4.0, "original_length": 9}},
            "high_frequency_factor 4.0 must be above low_frequency_factor 4.0",
        ),
    ],
)
def test_switches_that_contradict_each_other_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrunkSpec(**{**DEEP, **fields})
