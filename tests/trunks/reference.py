"""What transformers makes of a config and weights: for making golden files, and for the comparison with peers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.trunks.cases import make_weights


def reference_model(config: Mapping[str, Any]) -> Any:
    """The model in float32, with plain attention and made-up weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    own = copy.deepcopy(dict(config))
    made = AutoConfig.for_model(own.pop("model_type"), **own)
    model = AutoModelForCausalLM.from_config(made, attn_implementation="eager", dtype=torch.float32).eval()
    weights = reference_weights(model)
    missing, unexpected = model.load_state_dict(
        {name: torch.from_numpy(weight) for name, weight in weights.items()}, strict=False
    )
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model


def reference_weights(model: Any) -> dict[str, np.ndarray]:
    """The weights by name; a head that is the embedding is left out, as it is in files."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return make_weights(shapes, model.config.model_type.startswith("gemma"))


def reference_logits(model: Any, tokens_T: np.ndarray) -> np.ndarray:
    """Float32[T, V]."""
    import torch

    with torch.no_grad():
        logits = model(torch.from_numpy(tokens_T.astype(np.int64))[None]).logits
    return logits[0].float().numpy()
