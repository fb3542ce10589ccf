"""Tiny GGUF files, written by the package of its own makers."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.trunks.cases import CASES, byte_tokenizer, make_weights

LAYERS = 4
_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_PRE = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_BOTH = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def to_gguf_name(name: str, gemma: bool) -> str:
    """What GGUF calls a tensor of a Hugging Face folder."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    whole["lm_head.weight"] = "output.weight"
    if name in whole:
        return whole[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, leaf = rest.rpartition(".")
    return f"blk.{layer}.{(_PARTS | (_BOTH if gemma else _PRE))[part]}.{leaf}"


def interleave(array: np.ndarray, heads: int) -> np.ndarray:
    """As converters of Llama lay out queries and keys: pairs side by side."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def gguf_tensors(architecture: str, case: str, shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    config, gemma = CASES[case], architecture.startswith("gemma")
    tensors = {}
    for name, array in make_weights(shapes, gemma).items():
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            array = interleave(array, heads)
        if gemma and array.ndim == 1:
            array = array + 1
        tensors[to_gguf_name(name, gemma)] = array.astype(np.float32)
    return tensors


def write_gguf(path: Path, architecture: str, case: str, shapes: dict[str, Any], **changes: Any) -> Path:
    """A GGUF file of a case; `changes` are keys without the architecture, None to leave one out."""
    config = CASES[case]
    heads = config["num_attention_heads"]
    own = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config.get("rope_theta", 10000.0),
    }
    if "head_dim" in config:
        own |= dict.fromkeys(("attention.key_length", "attention.value_length"), config["head_dim"])
    if architecture == "llama":
        own["rope.dimension_count"] = config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (own | {key: value for key, value in changes.items() if "tokenizer" not in key}).items():
        if isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        elif isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
    add_tokenizer(writer, **{key: value for key, value in changes.items() if "tokenizer" in key})
    for name, array in gguf_tensors(architecture, case, shapes).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(
    writer: Any, tokenizer_model: str = "gpt2", tokenizer_pre: str = "gpt-2", tokenizer_merge: str = "\u0120 x"
) -> None:
    """256 bytes, an end token, and one merge: of a space and an x."""
    vocab = byte_tokenizer()["model"]["vocab"]
    tokens = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
    writer.add_tokenizer_model(tokenizer_model)
    writer.add_tokenizer_pre(tokenizer_pre)
    writer.add_token_list([*tokens, tokenizer_merge.replace(" ", "")])
    writer.add_token_types([1] * 256 + [3, 1])
    writer.add_token_merges([tokenizer_merge])
    writer.add_eos_token_id(256)
