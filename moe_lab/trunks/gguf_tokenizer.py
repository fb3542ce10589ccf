"""The `tokenizer.json` of a GGUF file: rebuilt from its lists, and believed only once it cuts a text as the file says.

A file names its pre-tokenizer, which cuts a text before pairs are merged; what that name means is in llama.cpp's source
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp) and nowhere in the file. So only names whose cut
is written down here are read, and every rebuilt tokenizer is held against that cut, merged by brute force.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from moe_lab.errors import LabError, Refused, did_you_mean, printable
from moe_lab.trunks.gguf_file import require_text

PROBE = "It's 2024:  x_1 = 10.5\n\n\tnaïve 中文🙂 DON'T"

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_CUTS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}],
    "qwen2": [_split(_QWEN2), {**_BYTES, "use_regex": False}],
    "llama-bpe": [_split(_LLAMA3), {**_BYTES, "use_regex": False}],
}
_GPT2_PIECES = [
    "It",
    "'s",
    " 2024",
    ":",
    " ",
    " x",
    "_",
    "1",
    " =",
    " 10",
    ".",
    "5",
    "\n\n",
    "\t",
    "naïve",
    " 中文",
    "🙂",
]
_CUT_PROBES: dict[str, list[str]] = {
    "gpt-2": [*_GPT2_PIECES, " DON", "'", "T"],
    "smollm": [
        *("It", "'s", " ", "2", "0", "2", "4", ":", " ", " x", "_", "1", " =", " ", "1", "0", ".", "5", "\n\n", "\t"),
        *("naïve", " 中文", "🙂", " DON", "'", "T"),
    ],
    "qwen2": [
        *("It", "'s", " ", "2", "0", "2", "4", ":", " ", " x", "_", "1", " =", " ", "1", "0", ".", "5", "\n\n"),
        *("\tnaïve", " 中文", "🙂", " DON", "'T"),
    ],
    "llama-bpe": [
        *("It", "'s", " ", "202", "4", ":", " ", " x", "_", "1", " =", " ", "10", ".", "5", "\n\n"),
        *("\tnaïve", " 中文", "🙂", " DON", "'T"),
    ],
}
"""How llama.cpp cuts `PROBE`, written down by hand from its expressions."""
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5


def rebuild_tokenizer(metadata: Mapping[str, Any], label: str) -> bytes:
    """The bytes of a `tokenizer.json`.

    Raises:
        LabError: the file's tokenizer is of a kind that cannot be rebuilt exactly.
    """
    model = require_text(metadata, "tokenizer.ggml.model", label)
    if model != "gpt2":
        raise Refused(
            f"{label} has a tokenizer of the kind {printable(model)[:40]}, which cannot be rebuilt exactly from what "
            "the file holds; give the model's own with --tokenizer tokenizer.json."
        )
    pre = require_text(metadata, "tokenizer.ggml.pre", label)
    if pre not in _CUTS:
        raise Refused(
            f"{label}: what its pre-tokenizer {printable(pre)[:40]} does is not in the file and not known here."
            f"{did_you_mean(pre, _CUTS)} Give the model's own tokenizer with --tokenizer tokenizer.json."
        )
    tokens, types = _list(metadata, "tokens", str, label), _list(metadata, "token_type", int, label)
    merges = _list(metadata, "merges", str, label)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise Refused(f"{label}: its tokens are not each there once with a type; take a file that was converted anew.")
    definition = _definition(tokens, types, merges, pre)
    _compare(definition, tokens, merges, pre, label)
    return definition


def read_start(metadata: Mapping[str, Any], label: str) -> str | None:
    """The token that the file wants in front of a text, None where it wants none."""
    if metadata.get("tokenizer.ggml.add_bos_token") is not True:
        return None
    tokens, start = _list(metadata, "tokens", str, label), metadata.get("tokenizer.ggml.bos_token_id")
    if type(start) is not int or not 0 <= start < len(tokens):
        raise Refused(f"{label} wants a token in front of a text and does not say which; take another file.")
    return str(tokens[start])


class TokenLists(NamedTuple):
    """A tokenizer as a file lists it, by id."""

    tokens: list[str]
    types: list[int]
    merges: list[str]


def token_lists(definition: Mapping[str, Any], rows: int) -> TokenLists:
    """The lists of a `tokenizer.json`, with names for the rows of the embedding that stand for no token.

    Raises:
        Refused: it has tokens that take spaces or only whole words, which a file cannot say, or is of another kind.
    """
    model, added = definition["model"], definition.get("added_tokens") or []
    if model.get("type") != "BPE":
        raise Refused(f"a tokenizer of the kind {ascii(model.get('type'))[:40]} is not written; write a folder")
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise Refused(f"token {printable(token['content'])[:40]} takes what stands beside it, which is not written")
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [_UNUSED] * rows
    for token, index in ids.items():
        tokens[index], types[index] = token, _NORMAL
    for token in added:
        types[token["id"]] = _CONTROL if token["special"] else _USER
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return TokenLists(tokens, types, merges)


def find_cut(definition: Mapping[str, Any]) -> str:
    """What a file calls the pre-tokenizer of a `tokenizer.json`.

    Raises:
        Refused: it has no name among those that are known here.
    """
    for pre in _CUTS:
        known = json.loads(_definition([], [], [], pre))
        if _how_it_cuts(known) == _how_it_cuts(definition):
            return pre
    raise Refused(
        f"the tokenizer cuts texts in a way that has no name here; known are {', '.join(_CUTS)}. Write a folder: "
        "moe-lab export hf"
    )


def _how_it_cuts(definition: Mapping[str, Any]) -> Any:
    whole = definition.get("pre_tokenizer") or {}
    parts = whole["pretokenizers"] if whole.get("type") == "Sequence" else [whole]
    cut = [{key: value for key, value in part.items() if key != "trim_offsets"} for part in parts]
    return cut, definition.get("normalizer"), bool(definition["model"].get("ignore_merges"))


def _list(metadata: Mapping[str, Any], name: str, of: type, label: str) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value or type(value[0]) is not of:
        raise Refused(f"{label} has no list tokenizer.ggml.{name}; take a file that was converted anew.")
    return value


def _definition(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], pre: str) -> bytes:
    added = [
        {
            "id": index,
            "content": token,
            "special": types[index] == _CONTROL,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for index, token in enumerate(tokens)
        if types[index] in (_CONTROL, _USER)
    ]
    value = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _CUTS[pre]},
        "post_processor": None,
        "decoder": {**_BYTES, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": list(merges),
        },
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _compare(definition: bytes, tokens: Sequence[str], merges: Sequence[str], pre: str, label: str) -> None:
    """Cuts the probe by hand and merges it by brute force; the tokenizer must give the same tokens."""
    import tokenizers

    try:
        built = tokenizers.Tokenizer.from_str(definition.decode())
    except Exception as error:  # the library raises bare Exception
        raise Refused(f"{label}: no tokenizer can be made of its lists: {printable(str(error))[:200]}.") from None
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    ids = {token: index for index, token in enumerate(tokens)}
    letters = byte_letters()
    expected: list[int | None] = []
    for piece in _CUT_PROBES[pre]:
        word = [letters[byte] for byte in piece.encode()]
        whole = "".join(word)
        parts = [whole] if pre == "llama-bpe" and whole in ids else _merge(word, ranks)
        expected += [ids.get(part) for part in parts]
    if built.encode(PROBE, add_special_tokens=False).ids != expected:
        raise _differs(label, pre)


def _differs(label: str, pre: str) -> LabError:
    return Refused(
        f"{label}: the tokenizer rebuilt from its lists does not cut a text as its pre-tokenizer {pre} does; give the "
        "model's own with --tokenizer tokenizer.json."
    )


def _merge(word: list[str], ranks: Mapping[tuple[str, ...], int]) -> list[str]:
    """Joins the neighbours of least rank until none are left to join (Sennrich et al. 2016, arXiv 1508.07909)."""
    while len(word) > 1:
        pairs = [
            (ranks.get((left, right), len(ranks)), at) for at, (left, right) in enumerate(itertools.pairwise(word))
        ]
        rank, at = min(pairs)
        if rank == len(ranks):
            break
        word = [*word[:at], word[at] + word[at + 1], *word[at + 2 :]]
    return word


def byte_letters() -> dict[int, str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from 256 up."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}
