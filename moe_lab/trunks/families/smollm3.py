"""SmolLM3: every fourth layer knows no positions. `no_rope_layers` means the reverse of its name: 1 has them."""

from __future__ import annotations

from typing import Any

from moe_lab.trunks.config_keys import ConfigKeys
from moe_lab.trunks.family import PRE_NORMS, Family, read_layer_types, read_shapes, read_window
from moe_lab.trunks.rope import read_rope


def read(keys: ConfigKeys) -> dict[str, Any]:
    shapes = read_shapes(keys, kv_heads=4, tied=True)
    layers = shapes["num_layers"]
    interval = keys.count("no_rope_layer_interval", 4)
    rotary = keys.items("no_rope_layers", int, layers) or [int((i + 1) % interval != 0) for i in range(layers)]
    keys.take("max_window_layers", None)  # of the config this one was made from; nothing reads it
    without = [index for index, has_rope in enumerate(rotary) if not has_rope]
    slides, window = keys.flag("use_sliding_window", False), keys.optional_count("sliding_window")
    sliding = read_layer_types(keys, layers, without if slides and window else [])
    return {
        **shapes,
        **read_rope(keys, 2_000_000.0),
        **read_window(keys, sliding, window),  # where layer_types says so, whatever use_sliding_window says
        "layers_without_rope": without,
        "attention_bias": keys.flag("attention_bias", False),
        "ffn_bias": keys.flag("mlp_bias", False),
        "norm_cast": "before_scale",
    }


FAMILY = Family(name="smollm3", model_types=("smollm3",), read=read, norms=PRE_NORMS)
