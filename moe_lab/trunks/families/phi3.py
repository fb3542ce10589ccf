"""Phi-3 with its short contexts: Llama whose projections lie fused in the file. Its longrope is not read."""

from __future__ import annotations

from typing import Any

from moe_lab.trunks.config_keys import ConfigKeys
from moe_lab.trunks.family import PRE_NORMS, Family, read_shapes, read_window
from moe_lab.trunks.rope import read_rope


def read(keys: ConfigKeys) -> dict[str, Any]:
    keys.require("attention_bias", False)
    keys.take("original_max_position_embeddings", None)  # of longrope alone
    shapes = read_shapes(keys, eps=1e-5)
    rope = read_rope(keys, 10_000.0, partial=True)
    if rope["rope_scaling"] is not None:
        keys.refuse("rope_parameters" if "rope_parameters" in keys else "rope_scaling", "left out for Phi-3")
    window = keys.optional_count("sliding_window")
    sliding = [] if window is None else list(range(shapes["num_layers"]))
    return {**shapes, **rope, **read_window(keys, sliding, window), "norm_cast": "before_scale"}


FAMILY = Family(name="phi3", model_types=("phi3",), read=read, norms=PRE_NORMS, fused=True)
