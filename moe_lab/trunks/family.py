"""A family of pretrained decoders: how its config becomes a `TrunkSpec`, and how its tensors are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from moe_lab.trunks.config_keys import ConfigKeys
from moe_lab.trunks.rope import SLIDING

ACTIVATIONS = MappingProxyType(
    {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu_erf",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
    }
)
"""What configs call an activation, and what it is called here."""

PRE_NORMS = MappingProxyType({"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"})
POST_NORMS = MappingProxyType(
    {"attention_post_norm": "post_attention_layernorm", "ffn_post_norm": "post_feedforward_layernorm"}
)
BOTH_NORMS = MappingProxyType(
    {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_post_norm": "post_feedforward_layernorm",
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One family.

    Attributes:
        name: for people.
        model_types: what its `config.json` says.
        read: the fields of a `TrunkSpec` that a config gives; it takes every key that matters.
        norms: our norms of a layer, and what the checkpoint calls them.
        fused: whether queries, keys and values are one tensor, and gate and up another (Phi-3).
        gguf: the architectures of GGUF files that hold this family.
    """

    name: str
    model_types: tuple[str, ...]
    read: Callable[[ConfigKeys], dict[str, Any]]
    norms: Mapping[str, str]
    fused: bool = False
    gguf: tuple[str, ...] = ()


def read_shapes(
    keys: ConfigKeys,
    *,
    activation: tuple[str, str] = ("hidden_act", "silu"),
    kv_heads: int | None = None,
    eps: float = 1e-6,
    tied: bool = False,
) -> dict[str, Any]:
    """What all families say in the same words. What a config leaves out is what its family means by that.

    Args:
        keys: the config.
        activation: the key that names it, and what it is without one.
        kv_heads: heads of keys and values; as many as of queries if left out.
        eps: of the norms.
        tied: whether the head is the embedding.
    """
    keys.require("quantization_config", None)
    keys.require("auto_map", None)
    keys.require("is_encoder_decoder", False)
    keys.require("add_cross_attention", False)
    keys.require("tie_encoder_decoder", False)
    name = keys.text(*activation)
    if name not in ACTIVATIONS:
        keys.refuse(activation[0], f"one of {', '.join(ACTIVATIONS)}")
    heads = keys.count("num_attention_heads")
    return {
        "vocab_size": keys.count("vocab_size"),
        "d_model": keys.count("hidden_size"),
        "num_layers": keys.count("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": keys.optional_count("num_key_value_heads", kv_heads) or heads,
        "ffn_width": keys.count("intermediate_size"),
        "activation": ACTIVATIONS[name],
        "rms_norm_eps": keys.number("rms_norm_eps", eps),
        "tie_embeddings": keys.flag("tie_word_embeddings", tied),
    }


def read_window(keys: ConfigKeys, layers: list[int], window: int | None) -> dict[str, Any]:
    """The fields of sliding layers, none where there are none."""
    if not layers:
        return {}
    if window is None:
        keys.refuse("sliding_window", f"a number of tokens, since layers {layers} slide")
    return {"sliding_layers": layers, "sliding_window": window}


def read_layer_types(keys: ConfigKeys, num_layers: int, otherwise: list[int]) -> list[int]:
    """The sliding layers that `layer_types` lists, or `otherwise` where it is missing."""
    types = keys.items("layer_types", str, num_layers)
    if types is None:
        return otherwise
    if not set(types) <= {"full_attention", SLIDING}:
        keys.refuse("layer_types", f"full_attention or {SLIDING} throughout")
    return [index for index, name in enumerate(types) if name == SLIDING]
