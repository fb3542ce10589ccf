"""Byte and Hugging Face tokenizers: the bytes add up, text comes back, pieces show it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from moe_lab.data import ByteTokenizer, Document, Tokenizer, build_corpus, load_tokenizer
from moe_lab.data.spec import ByteTokenizerSpec, HFTokenizerSpec
from moe_lab.data.tokenizers import HFTokenizer, pieces
from moe_lab.errors import LabError
from tests.data.conftest import TRAINING_TEXT

TEXT = st.text(max_size=60) | st.lists(
    st.sampled_from(["🙂", "👩‍👩‍👧", "e\u0301", "é", "中文", " ", "\n", "the ", "<|endoftext|>", "<pad>", "\ufffd"])
).map("".join)


@pytest.fixture(scope="module", params=["byte", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe: HFTokenizer) -> Tokenizer:
    return ByteTokenizer() if request.param == "byte" else bpe


@given(text=TEXT)
@example(text="")
@example(text="🙂")
@example(text="e\u0301 <|endoftext|>\ufffd")
def test_bytes_add_up_and_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids, nbytes = tokenizer.encode(text)
    assert ids.dtype == nbytes.dtype == "int32"
    assert len(ids) == len(nbytes)
    assert nbytes.sum() == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_id not in ids
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
    assert (nbytes >= 0).all()


@pytest.fixture(scope="module")
def sentencepiece() -> HFTokenizer:
    """A tokenizer as Llama 2's: `▁` for spaces, bytes for what it does not know, a first space of its own."""
    words = ["▁", "a", "b", "▁a", "▁the", "<unk>", "<eos>"]
    vocabulary = {word: i for i, word in enumerate([f"<0x{byte:02X}>" for byte in range(256)] + words)}
    library = Library(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return HFTokenizer(library.to_str().encode(), "sentencepiece", None)


def test_a_tokenizer_with_a_first_space_of_its_own(sentencepiece: HFTokenizer) -> None:
    text = "a a  b é🙂\n"
    ids, nbytes = sentencepiece.encode(text)
    assert sentencepiece.decode(ids) == text
    assert nbytes.sum() == len(text.encode())
    assert pieces(sentencepiece, ids)[:3] == ["a", " a", " "]


@given(ids=st.lists(st.integers(0, 500), max_size=30))
@example(ids=[0xF0])
@example(ids=[0x80, 0xF0, 0x9F, 0x99, 0x82])
def test_pieces_together_are_the_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids)


@given(text=st.text(st.sampled_from("ab é🙂\n"), max_size=30))
def test_pieces_keep_spaces_that_a_token_alone_would_lose(sentencepiece: HFTokenizer, text: str) -> None:
    ids = sentencepiece.encode(text)[0]
    assert "".join(pieces(sentencepiece, ids)) == sentencepiece.decode(ids)


def test_pieces_of_a_character_in_parts_come_at_its_end(tokenizer: Tokenizer) -> None:
    found = pieces(tokenizer, tokenizer.encode("a☃b")[0])
    assert [piece for piece in found if piece] == ["a", "☃", "b"]
    assert found.index("☃") == 3


def test_eos_gives_no_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("ab")[0].tolist(), tokenizer.eos_id, *tokenizer.encode("c")[0].tolist()]
    assert tokenizer.decode(ids) == "abc"
    assert pieces(tokenizer, ids)[-2:] == ["", "c"]


def test_byte_tokens_are_bytes() -> None:
    tokenizer = ByteTokenizer()
    ids, nbytes = tokenizer.encode("é\n")
    assert ids.tolist() == [0xC3, 0xA9, 0x0A]
    assert nbytes.tolist() == [1, 1, 1]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)


def test_bpe_bytes_end_where_characters_end(bpe: HFTokenizer) -> None:
    ids, nbytes = bpe.encode(" the ☃")
    assert [bpe.decode([i]) for i in ids[:2]] == [" the", " "]
    assert nbytes.tolist() == [4, 1, 3, 0, 0]


def test_shipped_truncation_and_padding_are_off(bpe: HFTokenizer) -> None:
    assert len(bpe.encode("x")[0]) == 1
    assert len(bpe.encode("x y z " * 50)[0]) > 100


def test_offsets_that_leave_out_spaces_still_add_up() -> None:
    library = Library(
        models.BPE({"<eos>": 0, **{c: i + 1 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}, [])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = HFTokenizer(library.to_str().encode(), "x", None)
    for text in ("a  b ", "   ", " \n é"):
        assert tokenizer.encode(text)[1].sum() == len(text.encode())


def test_digests_differ_by_definition_and_eos(bpe_folder: Path) -> None:
    loaded = [
        load_tokenizer(spec, bpe_folder)
        for spec in (
            ByteTokenizerSpec(),
            HFTokenizerSpec(path="tokenizer.json"),
            HFTokenizerSpec(path="tokenizer.json", eos="<mine>"),
        )
    ]
    assert len({tokenizer.digest for tokenizer in loaded}) == 3
    assert all(tokenizer.digest.startswith("sha256-") for tokenizer in loaded)
    assert loaded[2].eos_id != loaded[1].eos_id
    assert load_tokenizer(HFTokenizerSpec(path="tokenizer.json"), bpe_folder).digest == loaded[1].digest


def write_lossy(path: Path, bpe_folder: Path) -> None:
    library = Library.from_file(str(bpe_folder / "tokenizer.json"))
    library.normalizer = normalizers.Lowercase()
    library.save(str(path))


def write_without_eos(path: Path, bpe_folder: Path) -> None:
    definition = (bpe_folder / "tokenizer.json").read_text().replace("<|endoftext|>", "<other>")
    path.write_text(definition)


def test_composing_normalizers_are_accepted(tmp_path: Path, bpe_folder: Path) -> None:
    library = Library.from_file(str(bpe_folder / "tokenizer.json"))
    library.normalizer = normalizers.NFC()
    library.save(str(tmp_path / "nfc.json"))
    tokenizer = load_tokenizer(HFTokenizerSpec(path="nfc.json"), tmp_path)
    text = "e\u0301 te\u0301"
    assert tokenizer.encode(text)[1].sum() == len(text.encode())


@pytest.mark.parametrize(
    ("name", "eos", "message"),
    [
        ("none.json", None, "none.json: No such file or directory; the path is relative to the YAML file"),
        (".", None, "Is a directory"),
        ("text.json", None, "text.json: not a tokenizer.json"),
        ("lossy.json", None, "lossy.json: loses text: .* comes back as 'two"),
        ("other.json", None, "other.json: has none of .* to end documents with; name the token with `eos:`"),
        (
            "good.json",
            "<min>",
            'good.json: has no token "<min>" to end documents with. Did you mean "<mine>"',
        ),
    ],
)
def test_bad_tokenizers(tmp_path: Path, bpe_folder: Path, name: str, eos: str | None, message: str) -> None:
    (tmp_path / "text.json").write_text(json.dumps({"model": 5}))
    (tmp_path / "good.json").write_bytes((bpe_folder / "tokenizer.json").read_bytes())
    write_lossy(tmp_path / "lossy.json", bpe_folder)
    write_without_eos(tmp_path / "other.json", bpe_folder)
    with pytest.raises(LabError, match=message):
        load_tokenizer(HFTokenizerSpec(path=name, eos=eos), tmp_path)


def changed(bpe_folder: Path, change: Callable[[dict[str, Any]], None], eos: str | None = None) -> HFTokenizer:
    definition = json.loads((bpe_folder / "tokenizer.json").read_text())
    change(definition)
    return HFTokenizer(json.dumps(definition).encode(), "changed", eos)


def test_dropout_left_over_from_training_is_off(bpe_folder: Path) -> None:
    tokenizer = changed(bpe_folder, lambda definition: definition["model"].update(dropout=0.5))
    text = "The quick brown fox jumps over the lazy dog."
    assert len({tuple(tokenizer.encode(text)[0].tolist()) for _ in range(10)}) == 1


@given(text=TEXT)
@example(text="before <|endoftext|> after")
def test_an_end_token_that_is_not_declared_special_is_never_in_a_text(plain_end: HFTokenizer, text: str) -> None:
    ids, nbytes = plain_end.encode(text)
    assert plain_end.eos_id not in ids
    assert plain_end.decode(ids) == text
    assert nbytes.sum() == len(text.encode())


@pytest.fixture(scope="module")
def plain_end(bpe_folder: Path) -> HFTokenizer:
    def change(definition: dict[str, Any]) -> None:
        [end] = [token for token in definition["added_tokens"] if token["content"] == "<|endoftext|>"]
        end["special"] = False

    return changed(bpe_folder, change)


def test_a_word_cannot_end_documents(bpe_folder: Path) -> None:
    with pytest.raises(LabError, match='"the" is a token of ordinary text and cannot end documents; name another one'):
        changed(bpe_folder, lambda definition: None, eos="the")


@pytest.fixture(scope="module")
def drops_bytes() -> HFTokenizer:
    """Byte-level, but trained without the alphabet of all bytes: it knows those of its training text alone."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    # All bytes of the sentence that every tokenizer is tried on are known.
    tried = "Two  words,\tA Tab;\n    def f(x): return x_1 != 0.5  # naïve 中文 🙂\n"
    library.train_from_iterator([tried, *TRAINING_TEXT], trainer)
    return HFTokenizer(library.to_str().encode(), "drops", None)


def test_a_document_that_does_not_come_back_is_refused_by_its_name_and_character(drops_bytes: HFTokenizer) -> None:
    documents = [
        Document("the fox\n", "jsonl:a:1", split="train"),
        Document("the fox: лиса\n", "jsonl:a:2", split="train"),
    ]
    message = (
        r'data "russian", document jsonl:a:2: the tokenizer loses text: at character 10 \(U\+043B\), '
        r"'the fox: лиса\\n' comes back as 'the fox: .*'.*; use a byte-level tokenizer that knows all 256 bytes"
    )
    with pytest.raises(LabError, match=message):
        build_corpus("russian", documents, drops_bytes)
    assert build_corpus("english", documents[:1], drops_bytes).splits["train"].bytes == 8


def test_a_first_space_that_is_not_told_from_the_tokenizer_s_own_has_no_bytes(sentencepiece: HFTokenizer) -> None:
    assert sentencepiece.encode(" a")[0].tolist() == sentencepiece.encode("a")[0].tolist()
    assert sentencepiece.encode(" a")[1].sum() == sentencepiece.encode("a")[1].sum() == 1
    assert sentencepiece.encode("  a b")[1].sum() == 4


def metaspace(prepends: str, takes_off: str) -> HFTokenizer:
    """`▁` for spaces and bytes for what it does not know; who puts a space in front, and who takes one off."""
    words = ["▁", "a", "b", "▁a", "▁b", "<unk>", "<eos>"]
    vocabulary = {word: i for i, word in enumerate([f"<0x{byte:02X}>" for byte in range(256)] + words)}
    merges = [("▁", "a"), ("▁", "b")]
    library = Library(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepends)
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=takes_off)])
    return HFTokenizer(library.to_str().encode(), "metaspace", None)


SCHEMES = {scheme: metaspace(scheme, scheme) for scheme in ("always", "first", "never")}


@pytest.mark.parametrize("scheme", SCHEMES)
@given(text=st.text(st.sampled_from("ab é🙂\n"), max_size=30))
@example(text="a b")
@example(text="é a")
@example(text=" a b")
@example(text="   a")
@example(text=" é")
def test_bytes_are_those_of_the_pieces_and_the_first_token_has_its_text_s_alone(scheme: str, text: str) -> None:
    tokenizer = SCHEMES[scheme]
    ids, nbytes = tokenizer.encode(text)
    not_told_apart = scheme != "never" and text.startswith(" ")
    assert "".join(pieces(tokenizer, ids)) == text[not_told_apart:]
    assert nbytes.sum() == len(text.encode()) - not_told_apart
    assert (nbytes >= 0).all()
    if text[:1] in ("a", "b"):
        assert nbytes[0] == 1  # `▁a` at the front is the letter alone


@pytest.mark.parametrize(
    ("prepends", "takes_off", "shown"),
    [
        ("always", "never", "'Two"),
        ("first", "never", "'Two"),
        ("never", "always", "' Two"),
        ("never", "first", "' Two"),
    ],
)
def test_a_decoder_that_takes_off_another_space_than_was_put_there_is_refused(
    prepends: str, takes_off: str, shown: str
) -> None:
    with pytest.raises(LabError, match=f"does not agree with itself on a space in front: {shown}.*same prepend_scheme"):
        metaspace(prepends, takes_off)


def test_a_space_in_front_of_every_text_of_a_byte_level_tokenizer_is_refused() -> None:
    library = Library(models.BPE({c: i for i, c in enumerate(["<eos>", *pre_tokenizers.ByteLevel.alphabet()])}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.decoder = decoders.ByteLevel()
    with pytest.raises(LabError, match=r"comes back as ' Two .*byte-level one: add_prefix_space false"):
        HFTokenizer(library.to_str().encode(), "prefixed", None)
