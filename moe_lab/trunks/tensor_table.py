"""Which tensor of a checkpoint fills which parameter of a trunk: every tensor once, every parameter once.

Checkpoints keep a projection as [out, in] and we as [in, out], so its matrix is turned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from moe_lab.artifacts.tensor_names import parameter_name
from moe_lab.errors import Damaged, Refused, did_you_mean, printable
from moe_lab.nn.decoder import abstract_trunk
from moe_lab.nn.spec import TrunkSpec
from moe_lab.trunks.family import Family

Array = np.ndarray[Any, Any]
Path = tuple[Any, ...]

FLOATS = ("float32", "bfloat16", "float16")


class Stored(NamedTuple):
    """How a tensor lies in a file; `dtype` is that of the array that comes out."""

    dtype: str
    shape: tuple[int, ...]


class TensorSource(Protocol):
    """The tensors of a checkpoint, read one by one."""

    @property
    def label(self) -> str: ...
    @property
    def stored(self) -> Mapping[str, Stored]: ...
    def read(self, name: str) -> Array: ...


class Piece(NamedTuple):
    """What fills one parameter."""

    name: str  # of the tensor in the checkpoint
    shape: tuple[int, ...]  # of the part of it that is taken
    turned: bool = False  # a matrix as [out, in]
    rows: slice | None = None  # of a tensor that holds several parameters
    interleaved_heads: int | None = None  # of a projection whose heads keep their rotary pairs side by side


class Names(NamedTuple):
    """How a format calls things."""

    embedding: str
    norm: str
    head: str
    layer: str  # with {} for its number
    parts: Mapping[Path, str]  # of a layer
    fused: Mapping[Path, str] = MappingProxyType({})


_HF_PARTS = {
    **{
        ("attention", ours): f"self_attn.{theirs}_proj"
        for ours, theirs in zip(("query", "key", "value", "out"), "qkvo", strict=True)
    },
    **{("ffn", part): f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    ("attention", "query_norm"): "self_attn.q_norm",
    ("attention", "key_norm"): "self_attn.k_norm",
}
_HF_FUSED = {
    **{("attention", part): "self_attn.qkv_proj" for part in ("query", "key", "value")},
    **{("ffn", part): "mlp.gate_up_proj" for part in ("gate", "up")},
}
GGUF_NAMES = Names(
    embedding="token_embd.weight",
    norm="output_norm.weight",
    head="output.weight",
    layer="blk.{}.",
    parts={
        ("attention", "query"): "attn_q",
        ("attention", "key"): "attn_k",
        ("attention", "value"): "attn_v",
        ("attention", "out"): "attn_output",
        ("attention", "query_norm"): "attn_q_norm",
        ("attention", "key_norm"): "attn_k_norm",
        **{("ffn", part): f"ffn_{part}" for part in ("gate", "up", "down")},
        ("attention_norm",): "attn_norm",
        ("attention_post_norm",): "post_attention_norm",
        ("ffn_norm",): "ffn_norm",
        ("ffn_post_norm",): "post_ffw_norm",
    },
)


def hugging_face_names(family: Family) -> Names:
    """The names in safetensors of a family."""
    norms = {(ours,): theirs for ours, theirs in family.norms.items()}
    return Names(
        embedding="model.embed_tokens.weight",
        norm="model.norm.weight",
        head="lm_head.weight",
        layer="model.layers.{}.",
        parts={**_HF_PARTS, **norms},
        fused=_HF_FUSED if family.fused else {},
    )


def tensor_table(spec: TrunkSpec, names: Names, *, interleaved: bool = False) -> dict[str, Piece]:
    """The piece of the checkpoint for each parameter of a trunk, by the parameter's name.

    Args:
        spec: says which parameters there are.
        names: how the checkpoint calls them.
        interleaved: whether queries and keys keep rotary pairs side by side, as GGUF files of Llama do.
    """
    state = abstract_trunk(spec)[1]
    return {parameter_name(path): _piece(path, leaf.shape, spec, names, interleaved) for path, leaf in _leaves(state)}


def _leaves(state: Any) -> Iterator[tuple[Path, jax.ShapeDtypeStruct]]:
    from flax import nnx

    return iter(nnx.to_flat_state(state))


def _piece(path: Path, shape: tuple[int, ...], spec: TrunkSpec, names: Names, interleaved: bool) -> Piece:
    match path:
        case ("embedding",):
            return Piece(names.embedding, shape)
        case ("norm", "scale"):
            return Piece(names.norm, shape)
        case ("unembedding", "weight"):
            return Piece(names.head, shape[::-1], turned=True)
        case ("layers", layer, *inner, leaf):
            return _layer_piece(tuple(inner), layer, leaf, shape, spec, names, interleaved)
    raise AssertionError(f"{path} is no parameter of a trunk")


def _layer_piece(
    part: Path, layer: int, leaf: str, shape: tuple[int, ...], spec: TrunkSpec, names: Names, interleaved: bool
) -> Piece:
    heads = {("attention", "query"): spec.num_heads, ("attention", "key"): spec.kv_heads}
    theirs = names.fused.get(part) or names.parts[part]
    return Piece(
        names.layer.format(layer) + theirs + (".bias" if leaf == "bias" else ".weight"),
        shape[::-1],
        turned=leaf == "weight",
        rows=_fused_rows(part, spec) if part in names.fused else None,
        interleaved_heads=heads.get(part) if interleaved else None,
    )


def _fused_rows(part: Path, spec: TrunkSpec) -> slice:
    """Where a projection lies in the fused tensor."""
    of_queries, of_keys = spec.num_heads * spec.attention_dim, spec.kv_heads * spec.attention_dim
    sizes = {
        ("attention", "query"): (0, of_queries),
        ("attention", "key"): (of_queries, of_keys),
        ("attention", "value"): (of_queries + of_keys, of_keys),
        ("ffn", "gate"): (0, spec.ffn_width),
        ("ffn", "up"): (spec.ffn_width, spec.ffn_width),
    }
    start, size = sizes[part]
    return slice(start, start + size)


class TrunkTensors(Mapping[str, Array]):
    """The parameters of a trunk out of a checkpoint, by name; each is read when it is asked for.

    Raises:
        LabError: a tensor is missing, left over, of another shape or dtype, or, once read, not finite.
    """

    def __init__(self, source: TensorSource, table: Mapping[str, Piece], ignored: Sequence[str] = ()) -> None:
        self.source, self.table = source, table
        _check(source, table, ignored)

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a parameter, without reading it."""
        shape = self.table[name].shape
        return shape[::-1] if self.table[name].turned else shape

    def __getitem__(self, name: str) -> Array:
        piece = self.table[name]
        array = self.source.read(piece.name)
        if not np.isfinite(array.astype(np.float32, copy=False).sum(dtype=np.float64)):
            raise Damaged(
                f"{self.source.label}: tensor {printable(piece.name)} holds numbers that are not finite; take the file "
                "anew from where it came from."
            )
        if piece.rows is not None:
            array = array[piece.rows]
        if piece.interleaved_heads is not None:
            pairs = array.reshape(piece.interleaved_heads, -1, 2, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        return array.T if piece.turned else array


def _check(source: TensorSource, table: Mapping[str, Piece], ignored: Sequence[str]) -> None:
    rows: dict[str, int] = {}
    for ours, piece in table.items():
        if piece.name not in source.stored:
            raise Refused(
                f"{source.label} has no tensor {piece.name}, which its config calls for."
                f"{did_you_mean(piece.name, source.stored)}"
            )
        _check_one(source.label, ours, piece, source.stored[piece.name])
        if piece.rows is not None:
            rows[piece.name] = max(rows.get(piece.name, 0), piece.rows.stop)
    for name, used in rows.items():
        if source.stored[name].shape[0] != used:
            raise Refused(
                f"{source.label}: tensor {name} has {source.stored[name].shape[0]} rows and {used} are known."
            )
    left = sorted(source.stored.keys() - {piece.name for piece in table.values()} - set(ignored))
    if left:
        named = ", ".join(printable(name)[:80] for name in left[:3])
        raise Refused(
            f"{source.label} has {len(left)} tensor{'s' * (len(left) > 1)} that its config does not explain: {named}. "
            "What they would do is not known, so the model is not read."
        )


def _check_one(label: str, ours: str, piece: Piece, stored: Stored) -> None:
    if stored.dtype not in FLOATS:
        raise Refused(f"{label}: tensor {piece.name} is of {stored.dtype}; a trunk is of {', '.join(FLOATS)}.")
    shape = stored.shape
    if piece.rows is not None and len(shape) == len(piece.shape) and shape[0] >= piece.rows.stop:
        shape = (piece.rows.stop - piece.rows.start, *shape[1:])
    if shape != piece.shape:
        raise Refused(
            f"{label}: tensor {piece.name} has shape {list(stored.shape)}, and its config says {list(piece.shape)} "
            f"for {ours}."
        )
