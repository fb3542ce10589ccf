"""A decoder as a folder that transformers, and what reads its folders, can open: the reverse of an import."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moe_lab.nn.spec import TrunkSpec
from moe_lab.registry.interchange import new_folder, write_file
from moe_lab.registry.manifest import TensorRecord
from moe_lab.registry.safetensors_file import write_safetensors
from moe_lab.trunks.config_writing import WrittenConfig
from moe_lab.trunks.huggingface import CHAT_TEMPLATE, CONFIG, GENERATION, INDEX, ONE_FILE, TOKENIZER, TOKENIZER_CONFIG
from moe_lab.trunks.tensor_table import Piece, hugging_face_names, tensor_table

SHARD_BYTES = 5 * 10**9
"""As transformers cuts models into files."""
README = "README.md"
_METADATA = {"format": "pt"}  # transformers refuses a file that does not say so

Array = np.ndarray[Any, Any]


class Texts(NamedTuple):
    """What of a decoder is no array.

    Attributes:
        tokenizer: the bytes of its `tokenizer.json`.
        start: the token in front of a document, if it has one.
        end: the token that ends a document.
        ends: ids after which it stops writing.
        chat_template: how a conversation is written down for it, if it was taught that.
        readme: for people.
    """

    tokenizer: bytes
    start: str | None
    end: str
    ends: tuple[int, ...]
    chat_template: str | None
    readme: str


def write_decoder(
    folder: Path,
    written: WrittenConfig,
    spec: TrunkSpec,
    dtype: str,
    read: Callable[[str], Array],
    texts: Texts,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Writes a folder that was not there, whole or not at all; returns the bytes of its tensors.

    Args:
        folder: to be made.
        written: its config.
        spec: which parameters there are.
        dtype: of all tensors.
        read: returns a parameter by its name here, as it lies here. One is in memory at a time.
        texts: what is beside.
        shard_bytes: a file has no more, but for one that holds a single larger tensor.
    """
    table = tensor_table(spec, hugging_face_names(written.family))
    ours = {piece.name: name for name, piece in table.items()}
    records = {piece.name: TensorRecord(dtype, piece.shape, 1, (), blocks=False) for piece in table.values()}
    shards = _shards(records, shard_bytes)

    def theirs(name: str) -> Array:
        return _turned(read(ours[name]), table[ours[name]]).astype(_numpy(dtype), copy=False)

    with new_folder(folder) as scratch:
        for file_name, own in shards.items():
            write_file(scratch / file_name, lambda file, own=own: write_safetensors(file, own, theirs, _METADATA))  # type: ignore[misc]
        for file_name, data in _small_files(written, dtype, texts, shards).items():
            write_file(scratch / file_name, lambda file, data=data: file.write(data))  # type: ignore[misc]
    return sum(record.total_bytes for record in records.values())


def _numpy(dtype: str) -> Any:
    from moe_lab.registry.chunks import numpy_dtype

    return numpy_dtype(dtype)


def _turned(array: Array, piece: Piece) -> Array:
    return np.ascontiguousarray(array.T) if piece.turned else array


def _shards(records: Mapping[str, TensorRecord], most: int) -> dict[str, dict[str, TensorRecord]]:
    """The tensors of each file, by its name."""
    files: list[dict[str, TensorRecord]] = [{}]
    size = 0
    for name, record in records.items():
        if files[-1] and size + record.total_bytes > most:
            files.append({})
            size = 0
        files[-1][name] = record
        size += record.total_bytes
    if len(files) == 1:
        return {ONE_FILE: files[0]}
    return {f"model-{n:05}-of-{len(files):05}.safetensors": own for n, own in enumerate(files, start=1)}


def _small_files(
    written: WrittenConfig, dtype: str, texts: Texts, shards: Mapping[str, Mapping[str, TensorRecord]]
) -> dict[str, bytes]:
    ids: dict[str, Any] = {"eos_token_id": list(texts.ends)} if texts.ends else {}
    tokens = {"eos_token": texts.end} | ({} if texts.start is None else {"bos_token": texts.start})
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    files = {
        CONFIG: _json({**written.config, "torch_dtype": dtype, **ids}),
        GENERATION: _json(ids),
        TOKENIZER: texts.tokenizer,
        TOKENIZER_CONFIG: _json({**about, **tokens}),
        README: texts.readme.encode(),
    }
    if texts.chat_template is not None:
        files[CHAT_TEMPLATE] = texts.chat_template.encode()
    if len(shards) > 1:
        names = dict(_file_of_each(shards))
        total = sum(record.total_bytes for own in shards.values() for record in own.values())
        files[INDEX] = _json({"metadata": {"total_size": total}, "weight_map": names})
    return files


def _file_of_each(shards: Mapping[str, Mapping[str, TensorRecord]]) -> Iterator[tuple[str, str]]:
    for file_name, own in shards.items():
        for name in own:
            yield name, file_name


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def common_dtype(dtypes: Iterable[str]) -> str:
    """The one that all have, else float32, which holds what any of them holds."""
    different = set(dtypes)
    return different.pop() if len(different) == 1 else "float32"
