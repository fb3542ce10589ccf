"""Mistral: Llama with a window in every layer where the config names one."""

from __future__ import annotations

from typing import Any

from moe_lab.trunks.config_keys import ConfigKeys
from moe_lab.trunks.family import PRE_NORMS, Family, read_shapes, read_window
from moe_lab.trunks.rope import read_rope


def read(keys: ConfigKeys) -> dict[str, Any]:
    shapes = read_shapes(keys, kv_heads=8)
    window = keys.optional_count("sliding_window", 4096)
    sliding = [] if window is None else list(range(shapes["num_layers"]))
    return {
        **shapes,
        **read_rope(keys, 10_000.0),
        **read_window(keys, sliding, window),
        "head_dim": keys.optional_count("head_dim"),
        "norm_cast": "before_scale",
    }


FAMILY = Family(name="mistral", model_types=("mistral",), read=read, norms=PRE_NORMS)
