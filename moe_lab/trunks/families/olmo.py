"""OLMo 2 and 3: norms behind attention and FFN, and on queries and keys over all heads at once."""

from __future__ import annotations

from typing import Any

from moe_lab.trunks.config_keys import ConfigKeys
from moe_lab.trunks.family import POST_NORMS, Family, read_layer_types, read_shapes, read_window
from moe_lab.trunks.rope import read_rope, read_rope_of_types


def read_olmo2(keys: ConfigKeys) -> dict[str, Any]:
    return {**_read(keys), **read_rope(keys, 10_000.0)}


def read_olmo3(keys: ConfigKeys) -> dict[str, Any]:
    fields = _read(keys)
    layers = fields["num_layers"]
    sliding = read_layer_types(keys, layers, [index for index in range(layers) if (index + 1) % 4])
    rope = read_rope_of_types(keys, sliding, 500_000.0, 500_000.0, "rope_theta")
    return {**fields, **read_window(keys, sliding, keys.optional_count("sliding_window", 4096)), **rope}


def _read(keys: ConfigKeys) -> dict[str, Any]:
    keys.require("clip_qkv", None)
    return {
        **read_shapes(keys, eps=1e-5),
        "attention_bias": keys.flag("attention_bias", False),
        "qk_norm": True,
        "qk_norm_over": "projection",
        "norm_placement": "post",
    }


OLMO2 = Family(name="olmo2", model_types=("olmo2",), read=read_olmo2, norms=POST_NORMS)
OLMO3 = Family(name="olmo3", model_types=("olmo3",), read=read_olmo3, norms=POST_NORMS)
