"""What the folder of an encoder says of itself counts, or is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_lab.errors import LabError
from moe_lab.questions.encoder import open_encoder
from moe_lab.questions.encoder_folder import read_encoder_folder
from tests.questions.bert import change_weights, declare_pooling, reference_vector, write_encoder

CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_encoder.cache_clear()
    return write_encoder(tmp_path / "encoder")


def configure(folder: Path, **changes: Any) -> None:
    """Changes keys of the config; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(("modes", "pooling"), [(CLS, "cls"), (MEAN, "mean"), ({"pooling_mode": "cls"}, "cls")])
def test_the_pooling_that_is_declared_is_used(folder: Path, modes: dict, pooling: str) -> None:
    bare = read_encoder_folder(str(folder))
    declare_pooling(folder, "Normalize", **modes)
    texts = ["", "proof", "the capital of the city", "poem verse " * 30]
    encoder = open_encoder(str(folder))
    expected = np.stack([reference_vector(folder, text, pooling) for text in texts])
    np.testing.assert_allclose(encoder(texts), expected, atol=2e-5)
    # Another pooling is another encoder; the mean is what an encoder always had.
    assert (encoder.digest == bare.digest) == (pooling == "mean")


def test_a_pooling_folder_counts_without_a_list_of_modules(folder: Path) -> None:
    declare_pooling(folder, **CLS)
    (folder / "modules.json").unlink()
    assert read_encoder_folder(str(folder)).pooling == "cls"


def test_what_an_encoder_may_leave_out_or_call_otherwise(folder: Path) -> None:
    texts = ["proof of algebra", "verse"]
    expected = open_encoder(str(folder))(texts)
    change_weights(folder, lambda weights: {f"bert.{name}": value for name, value in weights.items()})
    configure(folder, layer_norm_eps=None, position_embedding_type="absolute")
    open_encoder.cache_clear()
    np.testing.assert_array_equal(open_encoder(str(folder))(texts), expected)


def _without(name: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def _narrow(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: value[:3] if name == "encoder.layer.0.output.dense.bias" else value for name, value in weights.items()
    }


def _one_number(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    name = "encoder.layer.0.intermediate.dense.weight"
    return weights | {name: np.array(weights[name].sum(), np.float32)}


def _few_words(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[:5] if "word_embeddings" in name else value for name, value in weights.items()}


def _write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: declare_pooling(f, pooling_mode_max_tokens=True), "declares pooling_mode_max_tokens; encoders with"),
        (lambda f: declare_pooling(f, **{**CLS, **MEAN, "pooling_mode_cls_token": True}), "declares cls and mean"),
        (lambda f: declare_pooling(f), "declares no pooling"),
        (lambda f: declare_pooling(f, "Dense", **CLS), "modules.json lists Transformer, Pooling, Dense"),
        (_write("modules.json", "{}"), "modules.json: a dict, not a list"),
        (_write("config.json", "{"), "config.json: not JSON"),
        (_write("config.json", "[]"), "config.json: a list, not a dict"),
        (_write("tokenizer.json", "{}"), "tokenizer.json: cannot be read"),
        (_write("model.safetensors", "no tensors"), "model.safetensors: cannot be read"),
        (lambda f: configure(f, position_embedding_type="relative_key"), "position_embedding_type is relative_key"),
        (lambda f: configure(f, is_decoder=True), "is_decoder is set"),
        (lambda f: configure(f, hidden_size=None), "config.json gives no whole number for hidden_size"),
        (lambda f: configure(f, num_attention_heads=3), "is not a multiple of 3 heads"),
        (lambda f: configure(f, num_hidden_layers=3), "no tensor encoder.layer.2.attention.self.query.weight"),
        (
            lambda f: change_weights(f, _without("encoder.layer.1.output.dense.bias")),
            "no tensor encoder.layer.1.output.dense.bias",
        ),
        (
            lambda f: change_weights(f, _without("embeddings.word_embeddings.weight")),
            "no tensor embeddings.word_embeddings.weight",
        ),
        (lambda f: change_weights(f, _one_number), "intermediate.dense.weight is of (), config.json means (0, 8)"),
        (lambda f: change_weights(f, _narrow), "output.dense.bias is of (3,), config.json means (8,)"),
        (lambda f: change_weights(f, _few_words), "the tokenizer has 12 tokens, the weights 5"),
    ],
)
def test_what_is_not_read_as_it_says_is_refused(folder: Path, damage: Callable[[Path], Any], reason: str) -> None:
    damage(folder)
    with pytest.raises(LabError) as error:
        read_encoder_folder(str(folder))
    assert reason in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
