"""Text of a domain: sources, cleaning, splits, tokenizers, exercises, packed batches. numpy, never jax."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_lab.data.batches import TrainBatches, eval_batches
    from moe_lab.data.corpus import Corpus, TokenSplit, build_corpus, load_corpus
    from moe_lab.data.documents import SPLITS, Document, Split, split_of
    from moe_lab.data.packing import Batch
    from moe_lab.data.sources import read_documents
    from moe_lab.data.spec import ByteTokenizerSpec, DataSpec, HFTokenizerSpec, Source, TokenizerSpec
    from moe_lab.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer

_HOME = {
    "batches": ("TrainBatches", "eval_batches"),
    "corpus": ("Corpus", "TokenSplit", "build_corpus", "load_corpus"),
    "documents": ("SPLITS", "Document", "Split", "split_of"),
    "packing": ("Batch",),
    "sources": ("read_documents",),
    "spec": ("ByteTokenizerSpec", "DataSpec", "HFTokenizerSpec", "Source", "TokenizerSpec"),
    "tokenizers": ("ByteTokenizer", "Tokenizer", "load_tokenizer"),
}
__all__ = [
    "SPLITS",
    "Batch",
    "ByteTokenizer",
    "ByteTokenizerSpec",
    "Corpus",
    "DataSpec",
    "Document",
    "HFTokenizerSpec",
    "Source",
    "Split",
    "TokenSplit",
    "Tokenizer",
    "TokenizerSpec",
    "TrainBatches",
    "build_corpus",
    "eval_batches",
    "load_corpus",
    "load_tokenizer",
    "read_documents",
    "split_of",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that specs load without numpy."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
