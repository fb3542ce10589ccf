"""Outcome tables: what every candidate would have lost on every token, and what it would have cost.

One Parquet file, one row per token, rows of a sequence in order; a JSON header in the file's metadata names the
candidates. Shape letters: N sequences, S sequence length, C candidates, D feature width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.data.tables import ReadTable, TableFormat
from moe_lab.errors import Damaged
from moe_lab.routing.space import CandidateSpace

FILE = TableFormat(key=b"moe_lab_outcomes", version=2, name="outcome table", remedy="measure it again")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutcomeTable:
    """Measured losses of all candidates on the same tokens."""

    space: CandidateSpace
    groups: tuple[str, ...]  # names of the domains
    loss_NSC: np.ndarray  # float32 nats
    hidden_NSD: np.ndarray  # float32 router features; D may be 0
    tokens_NS: np.ndarray  # int32 ids of the tokens that were read
    segment_ids_NS: np.ndarray  # int32, 0 = not counted
    bytes_NS: np.ndarray  # int32 bytes that the predicted token stands for
    group_N: np.ndarray  # int32

    @property
    def mask_NS(self) -> np.ndarray:
        """Tokens whose outcome counts."""
        return self.segment_ids_NS > 0

    @cached_property
    def own_G(self) -> np.ndarray:
        """For each group the index of the module that loses least on it at full width: the group is its own text."""
        row_T, place_T = np.nonzero(self.mask_NS)
        widest_TE = self.loss_NSC[row_T, place_T][:, self.space.widest_E]
        loss_GE = np.zeros((len(self.groups), len(self.space.modules)))
        np.add.at(loss_GE, self.group_N[row_T], widest_TE)
        return loss_GE.argmin(axis=1)

    def without(self, names: Collection[str]) -> OutcomeTable:
        """The table without the candidates of some modules."""
        kept = self.space.kept(names)
        return dataclasses.replace(self, space=self.space.without(names), loss_NSC=self.loss_NSC[..., kept])

    def counted(self) -> OutcomeTable:
        """The table without sequences that are all padding."""
        index = np.flatnonzero(self.mask_NS.any(axis=1))
        arrays = ("loss_NSC", "hidden_NSD", "tokens_NS", "segment_ids_NS", "bytes_NS", "group_N")
        return dataclasses.replace(self, **{name: getattr(self, name)[index] for name in arrays})


def save_outcomes(table: OutcomeTable, path: Path, provenance: dict[str, Any]) -> None:
    """Writes the table; `provenance` says what it was measured on."""
    import pyarrow as pa

    sequences, length = table.segment_ids_NS.shape
    header = {
        "space": table.space.to_json(),
        "groups": list(table.groups),
        "sequence_length": length,
        "provenance": provenance,
    }
    columns: dict[str, Any] = {
        "sequence": np.repeat(np.arange(sequences, dtype=np.int32), length),
        "position": np.tile(np.arange(length, dtype=np.int32), sequences),
        "group": np.repeat(table.group_N.astype(np.int32), length),
        "token": table.tokens_NS.reshape(-1),
        "segment": table.segment_ids_NS.reshape(-1),
        "bytes": table.bytes_NS.reshape(-1),
    }
    for index, name in enumerate(table.space.names):
        columns[f"loss/{name}"] = np.ascontiguousarray(table.loss_NSC[..., index]).reshape(-1)
    if width := table.hidden_NSD.shape[-1]:  # Arrow has no lists of length 0
        flat = pa.array(np.ascontiguousarray(table.hidden_NSD).reshape(-1))
        columns["hidden"] = pa.FixedSizeListArray.from_arrays(flat, width)
    FILE.write(path, columns, header)


def load_outcomes(path: Path) -> OutcomeTable:
    """Reads a table back, checking that it is whole."""
    read = FILE.read(path, _columns)
    space = CandidateSpace.from_json(read.header["space"])
    length = read.header["sequence_length"]
    if len(read) % length:
        raise read.refused(f"{len(read)} rows are not whole sequences of {length} tokens")
    shape = (-1, length)
    loss = np.stack([read.column(f"loss/{name}").reshape(shape) for name in space.names], axis=-1)
    if not np.isfinite(loss[read.column("segment").reshape(shape) > 0]).all():
        raise Damaged(f"{path}: some losses are not finite; measure the table again")
    return OutcomeTable(
        space=space,
        groups=tuple(read.header["groups"]),
        loss_NSC=loss,
        hidden_NSD=_hidden(read, loss.shape[:2]),
        tokens_NS=read.column("token").reshape(shape),
        segment_ids_NS=read.column("segment").reshape(shape),
        bytes_NS=read.column("bytes").reshape(shape),
        group_N=read.column("group").reshape(shape)[:, 0],
    )


def _columns(header: dict[str, Any]) -> list[str]:
    space = CandidateSpace.from_json(header["space"])
    if not (isinstance(header["groups"], list) and header["sequence_length"] > 0):
        raise ValueError("groups and sequence_length")
    return ["group", "token", "segment", "bytes", *(f"loss/{name}" for name in space.names)]


def _hidden(read: ReadTable, shape: tuple[int, ...]) -> np.ndarray:
    """The features of all tokens, [N, S, D]."""
    if "hidden" not in read:
        return np.zeros((*shape, 0), np.float32)
    import pyarrow as pa

    hidden = read.arrow.column("hidden").combine_chunks()
    if not pa.types.is_fixed_size_list(hidden.type) or hidden.null_count:
        raise read.refused(f'the column "hidden" is of {hidden.type}, not of lists of one length')
    flat: np.ndarray = hidden.flatten().to_numpy()
    return flat.reshape(*shape, hidden.type.list_size)
