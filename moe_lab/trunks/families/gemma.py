"""Gemma 2 and the text model of Gemma 3: norms in front and behind that multiply by 1 + w, windows, two bases."""

from __future__ import annotations

import math
from typing import Any

from moe_lab.trunks.config_keys import ConfigKeys
from moe_lab.trunks.family import BOTH_NORMS, Family, read_layer_types, read_shapes, read_window
from moe_lab.trunks.rope import read_rope, read_rope_of_types


def read_gemma2(keys: ConfigKeys) -> dict[str, Any]:
    fields = _read(keys, logit_cap=30.0)
    layers = fields["num_layers"]
    sliding = read_layer_types(keys, layers, [index for index in range(layers) if (index + 1) % 2])
    return {
        **fields,
        **read_rope(keys, 10_000.0),
        **read_window(keys, sliding, _window(keys)),
        "attention_softcap": keys.optional_number("attn_logit_softcapping", 50.0),
    }


def read_gemma3(keys: ConfigKeys) -> dict[str, Any]:
    keys.require("attn_logit_softcapping", None)  # transformers takes the key and leaves the scores as they are
    fields = _read(keys, logit_cap=None)
    layers = fields["num_layers"]
    period = keys.count("sliding_window_pattern", keys.count("_sliding_window_pattern", 6))
    sliding = read_layer_types(keys, layers, [index for index in range(layers) if (index + 1) % period])
    rope = read_rope_of_types(keys, sliding, 1_000_000.0, 10_000.0, "rope_local_base_freq")
    return {**fields, **rope, **read_window(keys, sliding, _window(keys)), "qk_norm": True}


def _window(keys: ConfigKeys) -> int | None:
    return keys.optional_count("sliding_window", 4096)


def _read(keys: ConfigKeys, logit_cap: float | None) -> dict[str, Any]:
    keys.require("use_bidirectional_attention", False, None)
    keys.require("hidden_act", "gelu_pytorch_tanh")  # an older name, which is not read where both are there
    shapes = read_shapes(keys, activation=("hidden_activation", "gelu_pytorch_tanh"), kv_heads=4, tied=True)
    return {
        **shapes,
        "head_dim": keys.count("head_dim", 256),
        "attention_bias": keys.flag("attention_bias", False),
        "attention_scale": keys.number("query_pre_attn_scalar", 256) ** -0.5,
        "logit_softcap": keys.optional_number("final_logit_softcapping", logit_cap),
        "embedding_multiplier": math.sqrt(shapes["d_model"]),
        "norm_placement": "both",
        "norm_offset": 1,
    }


GEMMA2 = Family(name="gemma2", model_types=("gemma2",), read=read_gemma2, norms=BOTH_NORMS, gguf=("gemma2",))
GEMMA3 = Family(name="gemma3", model_types=("gemma3_text",), read=read_gemma3, norms=BOTH_NORMS, gguf=("gemma3",))
