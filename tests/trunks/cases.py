"""Tiny models of every family that is read: their configs as the model's own folder has them, and made-up weights.

The weights come from the tensors' names, so that whoever makes the golden logits and whoever tests against them need
no file of weights. Biases and norms are as uneven as the rest; what transformers makes has zeros and ones there, and
nothing would be tested. 600 positions reach beyond every window and every original length here.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.trunks.gguf_tokenizer import byte_letters

POSITIONS = 600
BYTES, VOCAB = 257, 264
WINDOW, ORIGINAL = 64, 128

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": ORIGINAL}
_YARN = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL}


def _config(model_type: str, **own: Any) -> dict[str, Any]:
    return {**_SHAPE, "model_type": model_type, **own}


CASES: dict[str, dict[str, Any]] = {
    "llama": _config("llama", rope_theta=10000.0, hidden_act="silu"),
    "llama-biased-tied": _config("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=12),
    "llama-linear-old": _config("llama", rope_theta=500.0, rope_scaling={"type": "linear", "factor": 4.0}),
    "llama3-old": _config("llama", rope_theta=5000.0, rope_scaling={"rope_type": "llama3", **_LLAMA3}),
    "llama3-new": _config("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 5000.0, **_LLAMA3}),
    "llama-yarn": _config(
        "llama",
        rope_parameters={"rope_type": "yarn", "rope_theta": 5000.0, "mscale": 1.0, "mscale_all_dim": 0.7, **_YARN},
    ),
    "llama-gelu": _config("llama", hidden_act="gelu", num_key_value_heads=None),
    "mistral": _config("mistral", sliding_window=WINDOW, rope_theta=1000.0),
    "mistral-full": _config("mistral", sliding_window=None, head_dim=16, num_key_value_heads=1),
    "smollm3": _config("smollm3", rope_theta=5000.0, no_rope_layers=[1, 0, 1, 0], use_sliding_window=False),
    "smollm3-sliding": _config("smollm3", no_rope_layer_interval=2, use_sliding_window=True, sliding_window=WINDOW),
    "qwen2": _config("qwen2", rope_theta=10000.0, tie_word_embeddings=True, use_sliding_window=False),
    "qwen2-sliding": _config("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    "qwen3": _config("qwen3", head_dim=16, rope_theta=10000.0),
    "qwen3-yarn": _config(
        "qwen3",
        head_dim=16,
        attention_bias=True,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "beta_fast": 16, "truncate": False, **_YARN},
    ),
    "olmo2": _config("olmo2", rope_theta=5000.0),
    "olmo3": _config(
        "olmo3",
        sliding_window=WINDOW,
        layer_types=[_SLIDING, _SLIDING, _SLIDING, _FULL],
        rope_parameters={
            _FULL: {"rope_type": "yarn", "rope_theta": 5000.0, "attention_factor": 1.2, **_YARN},
            _SLIDING: {"rope_type": "default", "rope_theta": 5000.0},
        },
    ),
    "olmo3-old": _config(
        "olmo3", sliding_window=WINDOW, rope_theta=500000.0, rope_scaling={"rope_type": "yarn", **_YARN}
    ),
    "gemma2": _config("gemma2", head_dim=12, query_pre_attn_scalar=20, sliding_window=WINDOW),
    "gemma2-plain": _config(
        "gemma2",
        head_dim=8,
        attn_logit_softcapping=None,
        final_logit_softcapping=5.0,
        sliding_window=WINDOW,
        layer_types=[_FULL, _SLIDING, _SLIDING, _FULL],
    ),
    "gemma3": _config(
        "gemma3_text",
        head_dim=12,
        query_pre_attn_scalar=10,
        sliding_window=WINDOW,
        sliding_window_pattern=2,
        rope_theta=100000.0,
        rope_local_base_freq=1000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "gemma3-new": _config(
        "gemma3_text",
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=[_SLIDING, _FULL, _SLIDING, _FULL],
        final_logit_softcapping=9.0,
        rope_parameters={
            _FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0},
            _SLIDING: {"rope_type": "default", "rope_theta": 1000.0},
        },
    ),
    "granite": _config(
        "granite",
        attention_multiplier=0.2,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        logits_scaling=2.5,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "phi3": _config("phi3", partial_rotary_factor=0.5, sliding_window=WINDOW, rope_theta=1000.0),
    "phi3-full": _config("phi3", sliding_window=None, num_key_value_heads=4),
}


def tokens() -> np.ndarray:
    """The text of all cases: int32[POSITIONS], of the bytes alone."""
    return np.random.default_rng(0).integers(0, BYTES, POSITIONS).astype(np.int32)


KEPT = np.unique(np.concatenate([np.arange(4), np.linspace(4, POSITIONS - 1, 28).astype(int)]))
"""Positions of which golden files keep the logits."""


def make_weight(name: str, shape: Iterable[int], gemma: bool) -> np.ndarray:
    """A tensor, from its name alone; `gemma` norms are kept as what is added to 1."""
    shape = tuple(shape)
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("bias"):
        value = 0.3 * normal
    elif len(shape) == 1:
        value = 0.3 * normal + (0 if gemma else 1)
    else:
        value = normal / np.sqrt(shape[-1]) * (3 if "embed" in name else 1)
    return value.astype(np.float32)


def make_weights(shapes: Mapping[str, Iterable[int]], gemma: bool) -> dict[str, np.ndarray]:
    return {name: make_weight(name, shape, gemma) for name, shape in shapes.items()}


def byte_tokenizer() -> dict[str, Any]:
    """A `tokenizer.json` of 256 bytes and an end token."""
    special = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [{"id": 256, "content": "<|endoftext|>", "special": True, **special}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letter: byte for byte, letter in byte_letters().items()} | {"<|endoftext|>": 256},
            "merges": [],
        },
    }


def write_folder(folder: Path, config: Mapping[str, Any], weights: Mapping[str, np.ndarray], shards: int = 1) -> Path:
    """A model's folder as Hugging Face keeps it."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(weights)
    files = {name: f"model-{index % shards + 1:05}-of-{shards:05}.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, folder / file)
    index = {"metadata": {"total_size": sum(array.nbytes for array in weights.values())}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
