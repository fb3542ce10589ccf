"""Llama 1 to 3.x, and what is made like them: SmolLM and SmolLM2, TinyLlama, Yi, DeepSeek's dense models."""

from __future__ import annotations

from typing import Any

from moe_lab.trunks.config_keys import ConfigKeys
from moe_lab.trunks.family import PRE_NORMS, Family, read_shapes
from moe_lab.trunks.rope import read_rope


def read(keys: ConfigKeys) -> dict[str, Any]:
    keys.require("rope_interleaved", False)
    return {
        **read_shapes(keys),
        **read_rope(keys, 10_000.0),
        "head_dim": keys.optional_count("head_dim"),
        "attention_bias": keys.flag("attention_bias", False),
        "ffn_bias": keys.flag("mlp_bias", False),
        "norm_cast": "before_scale",
    }


FAMILY = Family(name="llama", model_types=("llama",), read=read, norms=PRE_NORMS, gguf=("llama",))
