"""Sentence vectors from a small encoder that was trained elsewhere: what a question means, not only which words it has.

The encoder is one of the BERT kind, from a folder or out of an installed package. Nothing of it is trained here.

Legend: N texts, L tokens of a text, W width, H heads, F hidden width.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from lzma import LZMAError
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from moe_lab.files import open_replacement, user_cache
from moe_lab.questions.encoder_folder import read_encoder_folder

_STEP = 32
_TOKENS_AT_ONCE = 2048  # what a core's cache holds of the hidden layer; larger batches are slower
_WORTH_KEEPING = 1000
# A damaged zip file may also claim to be encrypted, or packed in another way.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
)

Told = Callable[[int], None]
"""Is told how many texts are read so far."""


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """Texts to vectors of length 1: the last layer, pooled over a text's tokens. What is too long is cut."""

    digest: str
    width: int
    heads: int
    layers: int
    epsilon: float
    longest: int
    pooling: str
    tokenizer: Any
    weights: Mapping[str, jax.Array]

    def __call__(self, texts: Sequence[str], told: Told = lambda done: None) -> np.ndarray:
        """Vectors [N, W], float32. Texts of like length go through together, so there is little padding."""
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
                vectors = _encode(self.weights, tokens, mask, self.heads, self.layers, self.epsilon, self.pooling)
                found[part] = np.asarray(vectors)[: len(part)]
                done += len(part)
                told(done)
        return found


def encode_texts(where: str, texts: Sequence[str], told: Told = lambda done: None) -> tuple[np.ndarray, str]:
    """Vectors of texts [N, W], and the digest of the encoder that made them.

    Those of a large table are kept in the user's cache folder: it takes minutes to make them again.
    """
    encoder = open_encoder(where)
    kept = _kept(encoder, texts) if len(texts) >= _WORTH_KEEPING else None
    if kept is None:
        return encoder(texts, told), encoder.digest
    try:
        # Opened here, for a damaged file stays open otherwise. The checksum of the zip file is compared.
        with kept.open("rb") as data, np.load(data) as found:
            return found["vectors"], encoder.digest
    except _DAMAGED:
        vectors = encoder(texts, told)
    with suppress(OSError), open_replacement(kept) as file:
        np.savez(file, vectors=vectors)
    return vectors, encoder.digest


def _kept(encoder: SentenceEncoder, texts: Sequence[str]) -> Path | None:
    """Where the vectors of these texts are kept, or None on an account without a home."""
    digest = hashlib.sha256(f"{encoder.digest} {encoder.longest}".encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    try:
        return user_cache() / "encoded" / f"{digest.hexdigest()}.npz"
    except RuntimeError:
        return None


@functools.lru_cache(maxsize=2)
def open_encoder(where: str) -> SentenceEncoder:
    """Loads the encoder in a folder, or in an installed package of that name (without importing it)."""
    read = read_encoder_folder(where)
    return SentenceEncoder(
        digest=read.digest,
        width=read.width,
        heads=read.heads,
        layers=read.layers,
        epsilon=read.epsilon,
        longest=read.longest,
        pooling=read.pooling,
        tokenizer=read.tokenizer,
        weights={name: jnp.asarray(value) for name, value in read.weights.items()},
    )


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _encode(
    weights: Mapping[str, jax.Array],
    token_NL: jax.Array,
    mask_NL: jax.Array,
    heads: int,
    layers: int,
    epsilon: float,
    pooling: str,
) -> jax.Array:
    def dense(x: jax.Array, name: str) -> jax.Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: jax.Array, name: str) -> jax.Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
        return centred * spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    words, places = weights["embeddings.word_embeddings.weight"], weights["embeddings.position_embeddings.weight"]
    kind = weights["embeddings.token_type_embeddings.weight"][0]
    h_NLW = norm(words[token_NL] + places[: token_NL.shape[1]] + kind, "embeddings.LayerNorm")
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            rearrange(dense(h_NLW, f"{at}.attention.self.{part}"), "n l (h k) -> n h l k", h=heads)
            for part in ("query", "key", "value")
        )
        score = jnp.einsum("nhqk,nhlk->nhql", query, key) / math.sqrt(query.shape[-1])
        share = jax.nn.softmax(jnp.where(mask_NL[:, None, None], score, -jnp.inf), axis=-1)
        read = rearrange(jnp.einsum("nhql,nhlk->nhqk", share, value), "n h l k -> n l (h k)")
        h_NLW = norm(h_NLW + dense(read, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        hidden_NLF = jax.nn.gelu(dense(h_NLW, f"{at}.intermediate.dense"), approximate=False)
        h_NLW = norm(h_NLW + dense(hidden_NLF, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    if pooling == "cls":
        pooled_NW = h_NLW[:, 0]
    else:
        pooled_NW = (h_NLW * mask_NL[..., None]).sum(axis=1) / mask_NL.sum(axis=1, keepdims=True)
    return pooled_NW / jnp.maximum(jnp.linalg.norm(pooled_NW, axis=-1, keepdims=True), 1e-12)
