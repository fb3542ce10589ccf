"""Granite, dense: Llama with four multipliers."""

from __future__ import annotations

from typing import Any

from moe_lab.trunks.config_keys import ConfigKeys
from moe_lab.trunks.family import PRE_NORMS, Family, read_shapes
from moe_lab.trunks.rope import read_rope


def read(keys: ConfigKeys) -> dict[str, Any]:
    return {
        **read_shapes(keys),
        **read_rope(keys, 10_000.0),
        "attention_bias": keys.flag("attention_bias", False),
        "ffn_bias": keys.flag("mlp_bias", False),
        "attention_scale": keys.number("attention_multiplier", 1.0),
        "embedding_multiplier": keys.number("embedding_multiplier", 1.0),
        "residual_multiplier": keys.number("residual_multiplier", 1.0),
        "logit_multiplier": 1 / _divisor(keys),
        "norm_cast": "before_scale",
    }


def _divisor(keys: ConfigKeys) -> float:
    value = keys.number("logits_scaling", 1.0)
    if value <= 0:
        keys.refuse("logits_scaling", "a number above 0")
    return value


FAMILY = Family(name="granite", model_types=("granite",), read=read, norms=PRE_NORMS)
