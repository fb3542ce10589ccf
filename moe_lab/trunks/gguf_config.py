"""What the metadata of a GGUF file says of its model, in the words of a `config.json`, so that one reader serves both.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_lab.errors import Refused, printable
from moe_lab.trunks.gguf_file import GGUFFile, require_text

_WORDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_GEMMA = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""Gemma's models of 27B scale attention by the model width over the heads and not by the width of a head. The file does
not say so; llama.cpp knows them by their layers."""
_OTHER_NAMESPACES = ("split", "adapter", "clip")


def read_architecture(file: GGUFFile) -> str:
    """Which family it is; a part of a model, or an adapter, is refused."""
    for key in file.metadata:
        namespace = key.partition(".")[0]
        if namespace in _OTHER_NAMESPACES and file.metadata[key] not in (0, 1):
            raise Refused(f"{file.label} is no whole model: it has {printable(key)}; take one file with all of it.")
    return require_text(file.metadata, "general.architecture", file.label)


def to_config(file: GGUFFile, architecture: str, model_type: str) -> dict[str, Any]:
    """The `config.json` that the file's own keys spell. A key that is not known is refused.

    Args:
        file: the file.
        architecture: its `general.architecture`, in front of its keys.
        model_type: of the family that reads the config.
    """
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    own.pop("vocab_size", None)  # the embedding's rows count
    is_gemma = model_type.startswith("gemma")
    words = {**_WORDS, **(_GEMMA if is_gemma else {})}
    config: dict[str, Any] = {"model_type": model_type}
    config |= {words[key]: own.pop(key) for key in list(own) if key in words}
    config |= _head(own, file.label)
    config |= _scaling(own)
    if is_gemma:
        config |= _gemma(config, architecture, file.label)
    if own:
        raise Refused(
            f"{file.label} has the key {printable(f'{architecture}.{sorted(own)[0]}')}, which this family does not "
            "have, and it may change what the model computes."
        )
    config["tie_word_embeddings"] = "output.weight" not in file.stored
    config["vocab_size"] = _rows(file, "token_embd.weight")
    return config | _biases(file, model_type)


def _head(own: dict[str, Any], label: str) -> dict[str, Any]:
    """The width of a head is that of keys, of values, and of what is turned."""
    sizes = {key: own.pop(key) for key in ("attention.key_length", "attention.value_length") if key in own}
    turned = own.pop("rope.dimension_count", None)
    widths = {*sizes.values(), *([] if turned is None else [turned])}
    if len(widths) > 1:
        raise Refused(f"{label}: keys, values and what is turned of a head have the widths {sorted(widths)}, not one.")
    return {"head_dim": widths.pop()} if widths else {}


def _scaling(own: dict[str, Any]) -> dict[str, Any]:
    kind = own.pop("rope.scaling.type", "none")
    if kind == "none":
        return {}
    scaling = {"rope_type": kind}
    words = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}
    scaling |= {words[key]: own.pop(f"rope.scaling.{key}") for key in words if f"rope.scaling.{key}" in own}
    return {"rope_scaling": scaling}


def _gemma(config: Mapping[str, Any], architecture: str, label: str) -> dict[str, Any]:
    head, layers = config.get("head_dim", 256), config.get("num_hidden_layers")
    if layers == _LAYERS_OF_27B[architecture]:
        head = config["hidden_size"] // config["num_attention_heads"]
    return {"query_pre_attn_scalar": head}


def _biases(file: GGUFFile, model_type: str) -> dict[str, Any]:
    """Whether projections have biases is said by the tensors alone."""
    if model_type != "llama":
        return {}
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.stored,
        "mlp_bias": "blk.0.ffn_up.bias" in file.stored,
    }


def _rows(file: GGUFFile, name: str) -> int:
    if name not in file.stored:
        raise Refused(f"{file.label} has no tensor {name}, so it is no language model.")
    return file.stored[name].shape[0]
