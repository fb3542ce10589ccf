"""A tiny sentence encoder in the folder layout of real ones, and what it computes written out in NumPy for one text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

WORDS = ("proof", "algebra", "capital", "city", "poem", "verse", "the", "of")
WIDTH, HEADS, HIDDEN, LAYERS, EPSILON = 8, 2, 16, 2, 1e-12
LONGEST = 40


def write_encoder(folder: Path, seed: int = 0) -> Path:
    """Random weights, one token for each of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}

    def random(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": random(len(vocabulary), WIDTH),
        "embeddings.position_embeddings.weight": random(LONGEST, WIDTH),
        "embeddings.token_type_embeddings.weight": random(2, WIDTH),
        "embeddings.LayerNorm.weight": 1 + random(WIDTH),
        "embeddings.LayerNorm.bias": random(WIDTH),
    }
    for layer in range(LAYERS):
        sizes = {
            **{f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")},
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (HIDDEN, WIDTH),
            "output.dense": (WIDTH, HIDDEN),
        }
        at = f"encoder.layer.{layer}"
        for name, (rows, columns) in sizes.items():
            weights |= {f"{at}.{name}.weight": random(rows, columns), f"{at}.{name}.bias": random(rows)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights |= {f"{at}.{name}.weight": 1 + random(WIDTH), f"{at}.{name}.bias": random(WIDTH)}
    save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "layer_norm_eps": EPSILON,
        "max_position_embeddings": LONGEST,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """Writes the tensors anew, in other shapes or by other names."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def declare_pooling(folder: Path, *modules: str, **modes: bool | str) -> None:
    """Writes what Sentence Transformers writes beside the three files."""
    kinds = ["Transformer", "Pooling", *modules]
    listed = [{"idx": n, "path": f"{n}_{kind}" if n else "", "type": f"some.{kind}"} for n, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **modes}))


def reference_vector(folder: Path, text: str, pooling: str = "mean") -> np.ndarray:
    """The vector of a text, in float64, one head after the other and without padding."""
    w = {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    words = [vocabulary.get(word, vocabulary["[UNK]"]) for word in text.split()][: LONGEST - 2]
    ids = [vocabulary["[CLS]"], *words, vocabulary["[SEP]"]]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    h = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    h = norm(h + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        parts = [dense(h, f"{at}.attention.self.{part}") for part in ("query", "key", "value")]
        read = []
        for head in range(HEADS):
            query, key, value = (part[:, head * WIDTH // HEADS : (head + 1) * WIDTH // HEADS] for part in parts)
            share = np.exp(query @ key.T / math.sqrt(WIDTH / HEADS))
            read.append(share / share.sum(-1, keepdims=True) @ value)
        mixed = dense(np.concatenate(read, -1), f"{at}.attention.output.dense")
        h = norm(h + mixed, f"{at}.attention.output.LayerNorm")
        x = dense(h, f"{at}.intermediate.dense")
        x = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
        h = norm(h + dense(x, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    pooled = h[0] if pooling == "cls" else h.mean(axis=0)
    return pooled / np.linalg.norm(pooled)
