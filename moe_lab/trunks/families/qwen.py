"""Qwen 2 and 2.5, whose queries, keys and values are biased, and Qwen 3, which norms queries and keys instead."""

from __future__ import annotations

from typing import Any

from moe_lab.trunks.config_keys import ConfigKeys
from moe_lab.trunks.family import PRE_NORMS, Family, read_layer_types, read_shapes, read_window
from moe_lab.trunks.rope import read_rope


def read_qwen2(keys: ConfigKeys) -> dict[str, Any]:
    return {**_read(keys), "attention_bias": True, "attention_out_bias": False}


def read_qwen3(keys: ConfigKeys) -> dict[str, Any]:
    return {
        **_read(keys),
        "head_dim": keys.count("head_dim", 128),
        "attention_bias": keys.flag("attention_bias", False),
        "qk_norm": True,
    }


def _read(keys: ConfigKeys) -> dict[str, Any]:
    shapes = read_shapes(keys, kv_heads=32)
    layers = shapes["num_layers"]
    slides = keys.flag("use_sliding_window", False)
    window = keys.optional_count("sliding_window", 4096)
    full = _full_layers(keys)
    sliding = read_layer_types(keys, layers, list(range(full, layers)) if slides and window else [])
    return {
        **shapes,
        **read_rope(keys, 10_000.0),
        **(read_window(keys, sliding, window) if slides else {}),
        "norm_cast": "before_scale",
    }


def _full_layers(keys: ConfigKeys) -> int:
    """How many layers at the bottom see all of a document; it may be more than there are, or none."""
    value = keys.take("max_window_layers", 28)
    if type(value) is not int or value < 0:
        keys.refuse("max_window_layers", "a whole number")
    return int(value)


QWEN2 = Family(name="qwen2", model_types=("qwen2",), read=read_qwen2, norms=PRE_NORMS, gguf=("qwen2",))
QWEN3 = Family(name="qwen3", model_types=("qwen3",), read=read_qwen3, norms=PRE_NORMS, gguf=("qwen3",))
