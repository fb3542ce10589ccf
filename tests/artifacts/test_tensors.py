"""How the tensors of artifacts are called, and a module's weights as tensors and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_lab.artifacts.tensor_names import by_layer, layer_names, parameter_name
from moe_lab.artifacts.weights import from_tensors, to_tensors
from moe_lab.experts.kinds.gated_ffn import KIND
from moe_lab.nn.pool import to_blocks


def test_a_parameter_is_called_by_its_path() -> None:
    assert parameter_name(("layers", 0, "attention", "key", "weight")) == "layers.0.attention.key.weight"


def test_the_parts_of_a_router_are_not_spelt_in_what_is_published() -> None:
    assert parameter_name(("home_evidence", "ngram_scores")) == "ngram_scores"
    assert parameter_name(("rung_loss", "width", "head", "kernel")) == "width.head.kernel"
    assert parameter_name(("level_EM",)) == "level_EM"


def test_names_are_taken_apart_as_they_were_put_together() -> None:
    names = {name: part for layer in (10, 2) for name, part in zip(layer_names(layer, "ab"), "ab", strict=True)}
    assert list(names) == ["layers.10.a", "layers.10.b", "layers.2.a", "layers.2.b"]
    assert list(by_layer(names).items()) == [(2, {"a": "a", "b": "b"}), (10, {"a": "a", "b": "b"})]


@pytest.mark.parametrize("name", ["scale", "layers.x.gate", "layers.-1.gate", "layers.1", "layers.1.gate.scale", ""])
def test_other_names_belong_to_no_layer(name: str) -> None:
    assert by_layer({name: 0}) == {}


@pytest.mark.slow
def test_stored_tensors_come_back_in_the_order_of_their_layers() -> None:
    rng = np.random.default_rng(0)
    weights = {
        layer: to_blocks(
            *(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, width), (8, width), (width, 8))), 4
        )
        for layer, width in {2: 4, 10: 9, 1: 5}.items()
    }
    tensors = to_tensors(weights, KIND)
    assert set(tensors) == {f"layers.{layer}.{part}" for layer in (1, 2, 10) for part in ("gate", "up", "down")}
    assert tensors["layers.10.gate"].shape == (3, 8, 4)
    assert tensors["layers.10.down"].shape == (3, 4, 8)
    back = from_tensors(dict(reversed(tensors.items())), KIND)
    assert list(back) == [1, 2, 10]
    jax.tree.map(np.testing.assert_array_equal, back, dict(sorted(weights.items())))
