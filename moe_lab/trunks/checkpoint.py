"""A pretrained model of others, looked at but not read: what it is here, and where its numbers are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_lab.config import decode
from moe_lab.data.tokenizers import HFTokenizer
from moe_lab.errors import LabError, NotFound, Refused, counted, printable
from moe_lab.files import digest_of
from moe_lab.nn.spec import TrunkSpec
from moe_lab.trunks.config_keys import ConfigKeys
from moe_lab.trunks.families import find_family, find_gguf_family
from moe_lab.trunks.family import Family
from moe_lab.trunks.gguf_config import read_architecture, to_config
from moe_lab.trunks.gguf_file import GGUFFile, is_gguf
from moe_lab.trunks.gguf_tokenizer import read_start, rebuild_tokenizer
from moe_lab.trunks.huggingface import (
    CONFIG,
    MAX_JSON_BYTES,
    TOKENIZER,
    ShardedTensors,
    read_chat_template,
    read_ends,
    read_file,
    read_json,
)
from moe_lab.trunks.tensor_table import (
    GGUF_NAMES,
    Names,
    TensorSource,
    TrunkTensors,
    hugging_face_names,
    tensor_table,
)

INVERSE_FREQUENCIES = "rotary_emb.inv_freq"
"""Old checkpoints hold the rotary frequencies beside the weights; the config says them too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model that can be imported.

    Attributes:
        family: which one it is of.
        spec: what it is.
        tensors: its parameters by name, read when asked for.
        tokenizer: its own, or the one that was given.
        ends: ids after which it stops writing.
        start: text of the token that it wants in front of a document, None where that is the end of another.
        chat_template: how a conversation is written down for it, None where it does not say.
        licence: as the file says, None where it does not.
        origin: its format, its family, and digests of what describes it.
        notes: what a person should know of it.
    """

    family: Family
    spec: TrunkSpec
    tensors: TrunkTensors
    tokenizer: HFTokenizer
    ends: tuple[int, ...]
    start: str | None
    chat_template: str | None
    licence: str | None
    origin: Mapping[str, str]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Looked:
    """What one format says of a model, before it is held together.

    Attributes:
        family: which one it is of.
        fields: of its `TrunkSpec`, those that its config gives.
        source: its tensors, and `names` what they are called.
        interleaved: whether queries and keys keep rotary pairs side by side.
        ignored: tensors that say nothing new.
        definition: its `tokenizer.json`.
        ends: see `Checkpoint`; so are `start`, `chat_template`, `licence` and `origin`.
    """

    family: Family
    fields: Mapping[str, Any]
    source: TensorSource
    names: Names
    interleaved: bool = False
    ignored: Sequence[str] = ()
    definition: bytes
    ends: tuple[int, ...]
    start: str | None
    chat_template: str | None
    licence: str | None
    origin: Mapping[str, str]


def open_checkpoint(
    source: Path, *, routed_layers: tuple[int, ...], block: int, tokenizer: Path | None = None, eos: str | None = None
) -> Checkpoint:
    """Looks at a Hugging Face folder or a GGUF file.

    Args:
        source: the folder or the file.
        routed_layers: in which expert modules are to work.
        block: hidden units of a block of a module.
        tokenizer: a `tokenizer.json` instead of the model's own.
        eos: text of the token that ends a document; the usual ones if left out.

    Raises:
        LabError: it is not understood to the last key and tensor.
    """
    if source.is_dir():
        looked = _look_at_folder(source, tokenizer)
    elif not source.exists():
        raise NotFound(f"{source} is not there; name the folder of a Hugging Face model, or a GGUF file.")
    elif not is_gguf(source):
        raise Refused(f"{source} is no GGUF file; name the folder that holds {CONFIG} and the safetensors.")
    else:
        looked = _look_at_gguf(source, tokenizer)
    return _hold_together(looked, routed_layers, block, eos)


def _look_at_folder(folder: Path, tokenizer: Path | None) -> _Looked:
    config = read_json(folder / CONFIG)
    label = str(folder / CONFIG)
    model_type = config.get("model_type")
    family = find_family(model_type if isinstance(model_type, str) else "", label)
    fields = read_config(family, config, label)
    source, names = ShardedTensors(folder), hugging_face_names(family)
    own = tokenizer or folder / TOKENIZER
    if not own.exists():
        raise NotFound(
            f"{own} is not there; AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers makes one of "
            "older files."
        )
    definition = read_file(own, MAX_JSON_BYTES)
    ignored = [name for name in source.stored if name.endswith(INVERSE_FREQUENCIES)]
    if fields["tie_embeddings"] and names.head in source.stored:
        _require_same(source, names.embedding, names.head)
        ignored.append(names.head)
    return _Looked(
        family=family,
        fields=fields,
        source=source,
        names=names,
        ignored=ignored,
        definition=definition,
        ends=read_ends(folder, config),
        start=find_start(definition),
        chat_template=read_chat_template(folder),
        licence=None,
        origin={"format": "safetensors", "config": digest_of(json.dumps(config, sort_keys=True).encode())},
    )


def _look_at_gguf(path: Path, tokenizer: Path | None) -> _Looked:
    file = GGUFFile(path)
    architecture = read_architecture(file)
    family = find_gguf_family(architecture, str(path))
    fields = read_config(family, to_config(file, architecture, family.model_types[0]), str(path))
    if "norm_offset" in fields:
        fields["norm_offset"] = 0  # the file holds 1 + w
    if tokenizer is None:
        definition, start = rebuild_tokenizer(file.metadata, str(path)), read_start(file.metadata, str(path))
    else:
        definition = read_file(tokenizer, MAX_JSON_BYTES)
        start = find_start(definition)
    end, licence = file.metadata.get("tokenizer.ggml.eos_token_id"), file.metadata.get("general.license")
    template = file.metadata.get("tokenizer.chat_template")
    return _Looked(
        family=family,
        fields=fields,
        source=file,
        names=GGUF_NAMES,
        interleaved=architecture == "llama",
        definition=definition,
        ends=(end,) if type(end) is int else (),
        start=start,
        chat_template=template if isinstance(template, str) else None,
        licence=licence if isinstance(licence, str) else None,
        origin={"format": "gguf", "file": file.digest()},
    )


def read_config(family: Family, config: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The fields of a `TrunkSpec`; every key was used, is harmless, or is refused."""
    keys = ConfigKeys(config, label)
    fields = family.read(keys)
    keys.finish()
    return fields


def _hold_together(looked: _Looked, routed_layers: tuple[int, ...], block: int, eos: str | None) -> Checkpoint:
    label, rows, notes = looked.source.label, looked.fields["vocab_size"], []
    definition, dropped = _without_unheard(looked.definition, rows, label)
    if dropped:
        notes.append(
            f"{counted(dropped, 'special token')} of the tokenizer lie beyond the vocabulary and were left out"
        )
    tokenizer = _make_tokenizer(definition, eos, looked.start, label)
    padding = rows - tokenizer.vocab_size
    if padding < 0:
        raise Refused(
            f"{label}: its tokenizer has ids to {tokenizer.vocab_size - 1} and the embedding {rows} rows; take the "
            "tokenizer that belongs to the model."
        )
    if padding:
        notes.append(f"{padding:,} rows of the embedding stand for no token")
    spec = decode(
        TrunkSpec,
        {**looked.fields, "vocab_padding": padding, "routed_layers": list(routed_layers), "block": block},
        f"{label} as a trunk",
    )
    table = tensor_table(spec, looked.names, interleaved=looked.interleaved)
    return Checkpoint(
        family=looked.family,
        spec=spec,
        tensors=TrunkTensors(looked.source, table, looked.ignored),
        tokenizer=tokenizer,
        ends=tuple(end for end in looked.ends if end < rows),
        start=None if tokenizer.start_id == tokenizer.eos_id else looked.start,
        chat_template=looked.chat_template,
        licence=looked.licence,
        origin={**looked.origin, "family": looked.family.name},
        notes=tuple(notes),
    )


def _make_tokenizer(definition: bytes, eos: str | None, start: str | None, label: str) -> HFTokenizer:
    """The tokenizer; a start that is its end of a document is no start of its own."""
    try:
        tokenizer = HFTokenizer(definition, TOKENIZER, eos, start)
        if start is not None and tokenizer.start_id == tokenizer.eos_id:
            return HFTokenizer(definition, TOKENIZER, eos)
        return tokenizer
    except LabError as error:
        raise type(error)(f"{label}: its tokenizer {error}") from error


def _require_same(source: TensorSource, first: str, second: str) -> None:
    if first in source.stored and source.read(first).tobytes() != source.read(second).tobytes():
        raise Refused(
            f"{source.label}: its config ties the head to the embedding, and {second} is another matrix; one of the "
            "two is wrong."
        )


def _without_unheard(definition: bytes, vocab_size: int, label: str) -> tuple[bytes, int]:
    """The tokenizer without special tokens that the embedding has no row for, as an image's in a text model."""
    try:
        value = json.loads(definition)
        added = value.get("added_tokens") or []
        kept = [token for token in added if token["id"] < vocab_size or not token.get("special")]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Refused(f"{label}: its tokenizer is no tokenizer.json: {printable(str(error))[:100]}.") from None
    if len(kept) == len(added):
        return definition, 0
    return json.dumps({**value, "added_tokens": kept}, ensure_ascii=False).encode(), len(added) - len(kept)


def find_start(definition: bytes) -> str | None:
    """The token that a tokenizer puts in front of a text; None where it puts none, or more than one."""
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(definition.decode())
        plain, dressed = (tokenizer.encode("a", add_special_tokens=added).tokens for added in (False, True))
    except Exception:  # of any kind; what is wrong with it is said where it is read
        return None
    return str(dressed[0]) if dressed[1 : 1 + len(plain)] == plain and dressed[0] != plain[0] else None
