"""A decoder as a GGUF file, for llama.cpp and what is made from it: the reverse of reading one.

What is written is read back before it gets its name, so a file says all that the decoder is, or there is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.data.tokenizers import HFTokenizer
from moe_lab.errors import LabError, Refused
from moe_lab.files import open_replacement
from moe_lab.nn.spec import LinearScaling, TrunkSpec, YarnScaling
from moe_lab.trunks.checkpoint import open_checkpoint
from moe_lab.trunks.config_writing import USUAL_POSITIONS, differing_fields
from moe_lab.trunks.family import Family
from moe_lab.trunks.folder_writing import Texts
from moe_lab.trunks.gguf_tokenizer import PROBE, find_cut, token_lists
from moe_lab.trunks.tensor_table import GGUF_NAMES, Piece, tensor_table

Array = np.ndarray[Any, Any]


def write_gguf(
    path: Path, family: Family, name: str, spec: TrunkSpec, dtype: str, read: Callable[[str], Array], texts: Texts
) -> int:
    """Writes a file that was not there, whole or not at all; returns the bytes of its tensors.

    Args:
        path: of the file.
        family: in whose words; it has a name in GGUF.
        name: for people.
        spec: which parameters there are.
        dtype: of matrices, `float32` or `bfloat16`; the rest is float32, as llama.cpp wants it.
        read: returns a parameter by its name here. One is in memory at a time.
        texts: what is beside; of these the tokenizer, the ends and the chat template are written.

    Raises:
        Refused: the format has no words for what the decoder is, or for how its tokenizer cuts a text.
    """
    if not family.gguf:
        raise Refused(f"GGUF files of the family {family.name} are not written; write a folder: moe-lab export hf")
    if spec.rope_scaling is not None and not isinstance(spec.rope_scaling, LinearScaling | YarnScaling):
        raise Refused(
            f"RoPE scaling {spec.rope_scaling.type} is a tensor in GGUF, which is not written; write a folder"
        )
    architecture = family.gguf[0]
    table = tensor_table(spec, GGUF_NAMES, interleaved=architecture == "llama")
    if os.path.lexists(path):
        raise Refused(f"{path} exists already, and nothing is overwritten; name a new file.")
    with open_replacement(path) as file:
        scratch = Path(file.name)  # which the package opens by itself
        size = _write(scratch, architecture, name, spec, dtype, table, read, texts)
        _read_back(scratch, spec, texts)
    return size


def _write(
    path: Path,
    architecture: str,
    name: str,
    spec: TrunkSpec,
    dtype: str,
    table: Mapping[str, Piece],
    read: Callable[[str], Array],
    texts: Texts,
) -> int:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    for key, value in _shape(spec).items():
        _add(writer, f"{architecture}.{key}", value)
    _add_tokenizer(writer, texts, spec.vocab_size)
    narrow = gguf.GGMLQuantizationType.BF16
    size = 0
    for piece in table.values():
        matrix = len(piece.shape) > 1 and dtype == "bfloat16"
        held = int(np.prod(piece.shape)) * (2 if matrix else 4)
        # Bytes of bfloat16, which NumPy has no name for, are told as they are.
        shape = (*piece.shape[:-1], 2 * piece.shape[-1]) if matrix else piece.shape
        kind = np.dtype(np.uint8 if matrix else np.float32)
        writer.add_tensor_info(piece.name, shape, kind, held, narrow if matrix else None)
        size += held
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for ours, piece in table.items():
        matrix = len(piece.shape) > 1 and dtype == "bfloat16"
        writer.write_tensor_data(_lay_out(read(ours), piece, narrow=matrix))
    writer.close()
    return size


def _shape(spec: TrunkSpec) -> dict[str, Any]:
    scaling = spec.rope_scaling
    says: dict[str, Any] = {
        "block_count": spec.num_layers,
        "context_length": USUAL_POSITIONS,
        "embedding_length": spec.d_model,
        "feed_forward_length": spec.ffn_width,
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.kv_heads,
        "attention.layer_norm_rms_epsilon": spec.rms_norm_eps,
        "rope.freq_base": spec.rope_base,
        "vocab_size": spec.vocab_size,
    }
    if spec.head_dim is not None:
        says |= dict.fromkeys(("attention.key_length", "attention.value_length"), spec.head_dim)
        says["rope.dimension_count"] = spec.head_dim
    if scaling is not None:
        says |= {"rope.scaling.type": scaling.type, "rope.scaling.factor": scaling.factor}
    if isinstance(scaling, YarnScaling):
        says["rope.scaling.original_context_length"] = scaling.original_length
    return says


def _add(writer: Any, key: str, value: Any) -> None:
    adds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adds[type(value)](key, value)


def _add_tokenizer(writer: Any, texts: Texts, rows: int) -> None:
    """The lists of a tokenizer, one token for each row of the embedding."""
    definition = json.loads(texts.tokenizer)
    lists = token_lists(definition, rows)
    ids = {token: index for index, token in enumerate(lists.tokens)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(find_cut(definition))
    writer.add_token_list(lists.tokens)
    writer.add_token_types(lists.types)
    writer.add_token_merges(lists.merges)
    writer.add_eos_token_id(texts.ends[-1] if texts.ends else ids[texts.end])
    writer.add_bos_token_id(ids[texts.start if texts.start is not None else texts.end])
    writer.add_add_bos_token(texts.start is not None)
    if texts.chat_template is not None:
        writer.add_chat_template(texts.chat_template)


def _lay_out(array: Array, piece: Piece, *, narrow: bool) -> Array:
    """A parameter as it lies in the file."""
    held = array.T if piece.turned else array
    if piece.interleaved_heads is not None:
        halves = held.reshape(piece.interleaved_heads, 2, -1, *held.shape[1:])
        held = halves.swapaxes(1, 2).reshape(held.shape)
    if narrow:
        import ml_dtypes

        return np.ascontiguousarray(held.astype(ml_dtypes.bfloat16)).view(np.uint8)
    return np.ascontiguousarray(held, np.float32)


def _read_back(path: Path, spec: TrunkSpec, texts: Texts) -> None:
    """Refuses a file that would be read as another decoder."""
    try:
        read = open_checkpoint(path, routed_layers=spec.routed_layers, block=spec.block)
    except LabError as error:
        raise type(error)(f"what GGUF can say of this decoder cannot be read again: {error}") from error
    odd = [field for field in differing_fields(read.spec, spec) if field != "vocab_padding"]
    if odd:
        raise Refused(f"GGUF has no words for all that this decoder is: {', '.join(odd[:4])}; write a folder")
    own = HFTokenizer(texts.tokenizer, "tokenizer.json", texts.end, texts.start)
    if read.tokenizer.encode(PROBE)[0].tolist() != own.encode(PROBE)[0].tolist():
        raise Refused("the tokenizer would cut a text otherwise in GGUF; write a folder: moe-lab export hf")
