"""Tokenizers and corpora that several tests of data share."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moe_lab.data import load_tokenizer
from moe_lab.data.spec import HFTokenizerSpec
from moe_lab.data.tokenizers import HFTokenizer

TRAINING_TEXT = [
    "def f(x):\n    return x + 1  # the answer\n",
    "The quick brown fox jumps over the lazy dog.\n",
    "naïve café, e\u0301te\u0301, 中文字符, 🙂🙂 👩‍👩‍👧 and more\n",
] * 20


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small byte-level BPE `tokenizer.json`, set to truncate and pad as shipped ones are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<|endoftext|>", "<mine>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def bpe(bpe_folder: Path) -> HFTokenizer:
    tokenizer = load_tokenizer(HFTokenizerSpec(path="tokenizer.json"), bpe_folder)
    assert isinstance(tokenizer, HFTokenizer)
    return tokenizer
