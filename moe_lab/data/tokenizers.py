"""Text to token ids and back, with the bytes of text each token stands for."""

from __future__ import annotations

import codecs
import functools
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_lab.data.spec import ByteTokenizerSpec, HFTokenizerSpec
from moe_lab.errors import LabError, NotFound, classify, did_you_mean
from moe_lab.files import digest_of

Int32 = NDArray[np.int32]

# Every text must come back unchanged, or bits per byte would not compare with other tokenizers'; these two at once.
_PROBE = "Two  words,\tA Tab;\n    def f(x): return x_1 != 0.5  # naïve 中文 🙂\n"
_PROBES = (_PROBE, " " + _PROBE)
_USUAL_EOS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>")


class Tokenizer(Protocol):
    """A text encoder.

    Attributes:
        name: for people.
        digest: `sha256-<hex>`; equal digests mean equal encodings.
        vocab_size: one more than the highest id.
        eos_id: the id that ends a document; never inside an encoded text.
        start_id: the id that stands in front of a document; mostly the one that ends the document before it.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def start_id(self) -> int: ...

    def encode(self, text: str) -> tuple[Int32, Int32]:
        """Returns token ids and the UTF-8 bytes each stands for; the bytes sum to those of the text.

        Raises:
            LabError: the text does not come back from its tokens, so that bits per byte would lie.
        """

    def decode(self, ids: Sequence[int] | Int32) -> str:
        """The text of the ids; ids that end documents or mean nothing give no text."""

    def stream(self) -> PieceStream:
        """Ids to text one by one, as they are written."""


class PieceStream(Protocol):
    """Text of ids that come one after another, in whole characters."""

    def add(self, token: int) -> str:
        """The text that this id completes; nothing while a character's bytes are not all there."""

    def end(self) -> str:
        """What of a character is there when no more ids come, as replacement characters."""


def pieces(tokenizer: Tokenizer, ids: Sequence[int] | Int32) -> list[str]:
    """The text that each id completes; for the ids of a text, the pieces together are `decode(ids)`.

    All but the last of the ids that share a character give an empty piece.
    """
    stream = tokenizer.stream()
    found = [stream.add(i) for i in np.asarray(ids).tolist()]
    if found:
        found[-1] += stream.end()
    return found


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, id 256 ends a document."""

    name = "byte"
    vocab_size = 257
    eos_id = start_id = 256
    digest = digest_of(b"moe-lab byte tokenizer: 0-255 bytes, 256 end of document")

    def encode(self, text: str) -> tuple[Int32, Int32]:
        ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
        return ids, np.ones_like(ids)

    def decode(self, ids: Sequence[int] | Int32) -> str:
        return bytes(i for i in np.asarray(ids).tolist() if i < 256).decode(errors="replace")

    def stream(self) -> PieceStream:
        return _ByteStream()


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(bytes([token]) if token < 256 else b"")

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class HFTokenizer:
    """A tokenizer of the `tokenizers` library, without special tokens, truncation, padding or dropout.

    The text of a special token inside a document is encoded as the letters it is made of, and so is the end token's. A
    token's bytes end where its characters end; the first of several tokens that share a character has all of its bytes.
    A tokenizer that puts a space of its own in front of a text does not tell it from one of the text's; such a space is
    not predicted, and has no bytes. Its decoder must take off the space that it puts there, and no other.

    Attributes:
        definition: the bytes of its `tokenizer.json`, as they were read.
    """

    def __init__(self, definition: bytes, name: str, eos: str | None, start: str | None = None) -> None:
        self.definition = definition
        parsed = _parse(definition)
        vocabulary: dict[str, int] = parsed.get_vocab(with_added_tokens=True)
        self.name = name
        self.vocab_size = max(vocabulary.values()) + 1
        self.eos_id = _eos_id(vocabulary, eos)
        self._tokenizer = _end_apart(parsed, definition, self.eos_id)
        self.start_id = self.eos_id if start is None else _id_of(vocabulary, start, "begin")
        apart = b"" if start is None else b"\0start %d" % self.start_id
        self.digest = digest_of(definition + b"\0eos %d" % self.eos_id + apart)
        self._own_space = self._encoding("a").ids == self._encoding(" a").ids
        for text in _PROBES:
            self.encode(text)

    def encode(self, text: str) -> tuple[Int32, Int32]:
        encoding = self._encoding(text)
        ids = np.array(encoding.ids, dtype=np.int32)
        lost = _lost_in_front(text, self.decode(ids), self._own_space)
        byte_at = _byte_offsets(text)
        if len(ids) == 0:
            return ids, ids.copy()
        ends = np.array(encoding.offsets, dtype=np.int64)[:, 1]
        ends[-1] = len(text)  # offsets may leave out spaces that the tokens hold
        return ids, np.diff(byte_at[ends], prepend=lost).astype(np.int32)

    def decode(self, ids: Sequence[int] | Int32) -> str:
        text: str = self._tokenizer.decode(self.meaningful(ids), skip_special_tokens=False)
        return text

    def stream(self) -> PieceStream:
        return _DecodedStream(self)

    @functools.cached_property
    def _marking(self) -> Any:
        """The same, but for special tokens, which stand for themselves."""
        tokenizer = _parse(self.definition)
        tokenizer.encode_special_tokens = False
        return tokenizer

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of its special tokens."""
        return tuple(str(token.content) for token in self._marking.get_added_tokens_decoder().values() if token.special)

    def encode_marked(self, text: str) -> tuple[int, ...]:
        """Ids of a text in which special tokens are marks, as in a conversation, and not letters."""
        return tuple(self._marking.encode(text, add_special_tokens=False).ids)

    def text_of(self, token: int) -> str:
        """What a token is called in the vocabulary."""
        return str(self._marking.id_to_token(token))

    def _encoding(self, text: str) -> Any:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def meaningful(self, ids: Iterable[int]) -> list[int]:
        """The ids that give text."""
        silent = (self.eos_id, self.start_id)
        return [int(i) for i in ids if i not in silent and i < self.vocab_size]


class _DecodedStream:
    """By decoding the ids of a few pieces again and again, since decoders look back, e.g. for a space."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # the ids of the last piece
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        self._pending += self._tokenizer.meaningful([token])
        piece = self._added()
        # A tail of replacement characters is the front of a character that the next ids complete.
        if piece.endswith("\ufffd"):
            return ""
        self._before, self._pending = self._pending or self._before, []
        return piece

    def end(self) -> str:
        return self._added()

    def _added(self) -> str:
        decode = self._tokenizer.decode
        return decode(self._before + self._pending)[len(decode(self._before)) :]


def _parse(definition: bytes) -> Any:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(definition.decode())
    except Exception as error:  # the library raises bare Exception
        raise LabError(f"not a tokenizer.json: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None  # left over from training; equal texts would get other tokens each time
    return tokenizer


def _end_apart(tokenizer: Any, definition: bytes, eos_id: int) -> Any:
    """The tokenizer with its end token set apart, so that no text is encoded to it."""
    text = tokenizer.id_to_token(eos_id)
    if eos_id in tokenizer.encode(text, add_special_tokens=False).ids:
        changed = json.loads(definition)
        for token in changed.get("added_tokens") or ():
            if token["id"] == eos_id:
                token["special"] = True
        tokenizer = _parse(json.dumps(changed).encode())
    if eos_id in tokenizer.encode(text, add_special_tokens=False).ids:
        raise LabError(f'"{text}" is a token of ordinary text and cannot end documents; name another one with `eos:`')
    return tokenizer


def _eos_id(vocabulary: dict[str, int], eos: str | None) -> int:
    if eos is not None:
        return _id_of(vocabulary, eos, "end")
    for token in _USUAL_EOS:
        if token in vocabulary:
            return vocabulary[token]
    raise LabError(f"has none of {', '.join(_USUAL_EOS)} to end documents with; name the token with `eos:`")


def _id_of(vocabulary: dict[str, int], token: str, use: str) -> int:
    if token not in vocabulary:
        close = did_you_mean(token, (other for other in vocabulary if not other.isalnum()))
        raise NotFound(f'has no token "{token}" to {use} documents with.{close}')
    return vocabulary[token]


def _lost_in_front(text: str, back: str, own_space: bool) -> int:
    """Bytes at the text's front that its tokens do not hold: 1 for a space that a tokenizer takes for its own, else 0.

    `own_space` says that it puts one in front of a text that has none. Composed and decomposed characters count as the
    same.
    """
    if back == text:
        return 0
    text, back = (unicodedata.normalize("NFC", some) for some in (text, back))
    if back == text:
        return 0
    if own_space and text == " " + back:
        return 1
    if back == " " + text or text == " " + back:
        raise LabError(
            f"does not agree with itself on a space in front: {_excerpt(text, 0)} comes back as {_excerpt(back, 0)}, "
            "so bits per byte would not be comparable; give its pre_tokenizer and its decoder the same prepend_scheme "
            "(a byte-level one: add_prefix_space false)"
        )
    pairs = enumerate(zip(text, back, strict=False))
    at = next((place for place, (mine, other) in pairs if mine != other), min(len(text), len(back)))
    where = f"character {at + 1} (U+{ord(text[at]):04X})" if at < len(text) else "its end"
    raise LabError(
        f"loses text: at {where}, {_excerpt(text, at)} comes back as {_excerpt(back, at)}, so bits per byte would not "
        "be comparable; use a byte-level tokenizer that knows all 256 bytes"
    )


def _excerpt(text: str, at: int) -> str:
    return repr(text[max(0, at - 20) : at + 20])


def _byte_offsets(text: str) -> NDArray[np.int64]:
    """The byte at which each character starts, and at last the length in bytes."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])


def load_tokenizer(spec: ByteTokenizerSpec | HFTokenizerSpec, base: Path) -> Tokenizer:
    """Makes the tokenizer of a spec; `base` is the folder that its path is relative to.

    Raises:
        LabError: the file is missing or no tokenizer, has no end token, or loses text.
    """
    if isinstance(spec, ByteTokenizerSpec):
        return ByteTokenizer()
    path = base / Path(spec.path).expanduser()
    try:
        return HFTokenizer(path.read_bytes(), spec.path, spec.eos, spec.start)
    except OSError as error:
        raise classify(error)(f"tokenizer {path}: {error.strerror}; the path is relative to the YAML file") from error
    except LabError as error:
        raise type(error)(f"tokenizer {path}: {error}") from error
