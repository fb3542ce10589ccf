"""A domain's tokens, by split, and their cache on disk."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_lab.data.documents import SPLITS, Document, Split
from moe_lab.data.frozen import FrozenText
from moe_lab.data.sources import read_documents
from moe_lab.data.spec import DataSpec
from moe_lab.data.tokenizers import ByteTokenizer, Int32, Tokenizer
from moe_lab.errors import LabError, classify
from moe_lab.files import open_replacement

# Part of every digest, and so of every cache key and run: raise it when encoding, the arrays below or what is counted
# of a packed row change.
_FORMAT = b"moe-lab corpus 2"
_ARRAYS = ("ids", "nbytes", "answer", "starts", "levels")


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """All documents of a split, one after the other, each with its end-of-document token.

    Attributes:
        ids: int32[tokens].
        nbytes: int32[tokens], UTF-8 bytes each token stands for; 0 for end of document.
        answer: bool[tokens], part of an exercise's answer, the newline after it included.
        starts: int64[documents + 1], the first token of each document, and at last `tokens`.
        levels: int32[documents], difficulty of exercises, -1 for other text.
    """

    ids: Int32
    nbytes: Int32
    answer: NDArray[np.bool_]
    starts: NDArray[np.int64]
    levels: Int32

    @property
    def documents(self) -> int:
        return len(self.levels)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def bytes(self) -> int:
        return int(self.nbytes.sum(dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenised domain.

    Attributes:
        name: the domain's.
        tokenizer: what made its tokens.
        splits: tokens of train, validation and test.
        digest: `sha256-<hex>` of the cleaned documents, their splits and the tokenizer.
    """

    name: str
    tokenizer: Tokenizer
    splits: Mapping[Split, TokenSplit]
    digest: str

    def describe(self) -> dict[str, Any]:
        """Documents, bytes and tokens in all and by split, for data cards; JSON-able."""
        splits = {
            name: {"documents": part.documents, "bytes": part.bytes, "tokens": part.tokens}
            for name, part in self.splits.items()
        }
        total = {unit: sum(part[unit] for part in splits.values()) for unit in ("documents", "bytes", "tokens")}
        return {
            "name": self.name,
            "digest": self.digest,
            "tokenizer": {"name": self.tokenizer.name, "digest": self.tokenizer.digest},
            **total,
            "splits": splits,
        }


def load_corpus(
    spec: DataSpec, tokenizer: Tokenizer, base: Path, cache: Path | None = None, frozen: FrozenText | None = None
) -> Corpus:
    """Reads, cleans, splits and tokenises a domain.

    Args:
        spec: the domain.
        tokenizer: see `load_tokenizer`.
        base: the folder that the spec's paths are relative to: that of the YAML file.
        cache: a folder for tokenised text, keyed by the documents and the tokenizer. Bytes are not cached:
            making them anew is faster than reading them.
        frozen: where text of the environment is kept from its first reading on; None reads it anew.

    Raises:
        LabError: a source is unusable, there is too little text to fill all three splits, or the tokenizer does not
            give a document back unchanged.
    """
    documents = read_documents(spec, base, frozen)
    _check_splits(spec, documents)
    if isinstance(tokenizer, ByteTokenizer):
        cache = None
    return build_corpus(spec.name, documents, tokenizer, cache)


def _check_splits(spec: DataSpec, documents: Sequence[Document]) -> None:
    for split in SPLITS:
        if not any(document.split == split for document in documents):
            raise LabError(
                f'data "{spec.name}": its {len(documents)} documents leave the {split} split empty '
                f"(heldout={spec.heldout}); add text, or lower longest_document={spec.longest_document} "
                "so that long texts are cut into more documents"
            )


def build_corpus(name: str, documents: Sequence[Document], tokenizer: Tokenizer, cache: Path | None = None) -> Corpus:
    """Tokenises documents whose splits are decided; `cache` as in `load_corpus`."""
    digest = _digest(documents, tokenizer)
    path = cache / f"{digest}.npz" if cache else None
    splits = _read_cache(path) if path else None
    if splits is None:
        try:
            splits = {split: _tokenize([d for d in documents if d.split == split], tokenizer) for split in SPLITS}
        except LabError as error:
            raise type(error)(f'data "{name}", {error}') from error
        if path:
            _write_cache(path, splits)
    return Corpus(name, tokenizer, splits, digest)


def _digest(documents: Iterable[Document], tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256(_FORMAT + tokenizer.digest.encode())
    for document in documents:
        assert document.split is not None, "assign_splits comes first"
        text = document.text.encode()
        digest.update(f"\n{document.split} {document.level} {len(text)}\n".encode())
        digest.update(text)
    return f"sha256-{digest.hexdigest()}"


def _tokenize(documents: Sequence[Document], tokenizer: Tokenizer) -> TokenSplit:
    eos, none = np.array([tokenizer.eos_id], np.int32), np.zeros(1, np.int32)
    ids, nbytes, answer, lengths = [], [], [], []
    for document in documents:
        try:
            document_ids, document_bytes = tokenizer.encode(document.text)
        except LabError as error:
            raise type(error)(f"document {document.source}: the tokenizer {error}") from error
        ids += [document_ids, eos]
        nbytes += [document_bytes, none]
        answer += [_answer_tokens(document, document_bytes), none.astype(bool)]
        lengths.append(len(document_ids) + 1)
    return TokenSplit(
        ids=np.concatenate([none[:0], *ids]),
        nbytes=np.concatenate([none[:0], *nbytes]),
        answer=np.concatenate([none[:0].astype(bool), *answer]),
        starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        levels=np.array([-1 if d.level is None else d.level for d in documents], np.int32),
    )


def _answer_tokens(document: Document, nbytes: Int32) -> NDArray[np.bool_]:
    """Which tokens hold any byte of an answer: what follows `= ` on its line, and the newline."""
    if document.level is None:
        return np.zeros(len(nbytes), bool)
    text = np.frombuffer(document.text.encode(), np.uint8)
    equals, newline = text == ord("="), text == ord("\n")
    inside = np.cumsum(equals) > np.cumsum(newline) - newline
    answer = inside & ~equals & (text != ord(" "))
    before = np.concatenate([[0], np.cumsum(answer)])
    ends = np.cumsum(nbytes)
    held: NDArray[np.bool_] = before[ends] > before[ends - nbytes]
    return held


def _read_cache(path: Path) -> dict[Split, TokenSplit] | None:
    """What is cached, or None; a damaged file (its zip checksum fails) is made anew."""
    try:
        with path.open("rb") as data, np.load(data, allow_pickle=False) as file:
            return {split: TokenSplit(**{a: file[f"{split}.{a}"] for a in _ARRAYS}) for split in SPLITS}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _write_cache(path: Path, splits: Mapping[Split, TokenSplit]) -> None:
    arrays = {f"{split}.{a}": getattr(part, a) for split, part in splits.items() for a in _ARRAYS}
    try:
        with open_replacement(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise classify(error)(
            f"cannot write the token cache {path}: {error.strerror}; free some space or name another folder"
        ) from error
