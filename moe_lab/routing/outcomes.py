"""Outcome tables: what every candidate would have lost on every token, and what it would have cost.

One Parquet file, one row per token, rows of a sequence in order; a JSON header in the file's metadata names the
candidates. Shape letters: N sequences, S sequence length, C candidates, D feature width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.errors import LabError
from moe_lab.routing.space import CandidateSpace

FORMAT = 1
HEADER = b"moe_lab_outcomes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutcomeTable:
    """Measured losses of all candidates on the same tokens."""

    space: CandidateSpace
    groups: tuple[str, ...]  # names of the domains
    loss_NSC: np.ndarray  # float32 nats
    hidden_NSD: np.ndarray  # float32 router features; D may be 0
    segment_ids_NS: np.ndarray  # int32, 0 = not counted
    bytes_NS: np.ndarray  # int32 bytes that the predicted token stands for
    group_N: np.ndarray  # int32

    @property
    def mask_NS(self) -> np.ndarray:
        """Tokens whose outcome counts."""
        return self.segment_ids_NS > 0

    def without(self, names: Collection[str]) -> OutcomeTable:
        """The table without the candidates of some modules."""
        kept = self.space.kept(names)
        return dataclasses.replace(self, space=self.space.without(names), loss_NSC=self.loss_NSC[..., kept])

    def counted(self) -> OutcomeTable:
        """The table without sequences that are all padding."""
        index = np.flatnonzero(self.mask_NS.any(axis=1))
        arrays = ("loss_NSC", "hidden_NSD", "segment_ids_NS", "bytes_NS", "group_N")
        return dataclasses.replace(self, **{name: getattr(self, name)[index] for name in arrays})


def save_outcomes(table: OutcomeTable, path: Path, provenance: dict[str, Any]) -> None:
    """Writes the table; `provenance` says what it was measured on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sequences, length = table.segment_ids_NS.shape
    header = {
        "format": FORMAT,
        "space": table.space.to_json(),
        "groups": list(table.groups),
        "sequence_length": length,
        "provenance": provenance,
    }
    columns = {
        "sequence": np.repeat(np.arange(sequences, dtype=np.int32), length),
        "position": np.tile(np.arange(length, dtype=np.int32), sequences),
        "group": np.repeat(table.group_N.astype(np.int32), length),
        "segment": table.segment_ids_NS.reshape(-1),
        "bytes": table.bytes_NS.reshape(-1),
    }
    arrays = {name: pa.array(values) for name, values in columns.items()}
    for index, name in enumerate(table.space.names):
        arrays[f"loss/{name}"] = pa.array(np.ascontiguousarray(table.loss_NSC[..., index]).reshape(-1))
    if width := table.hidden_NSD.shape[-1]:  # Arrow has no lists of length 0
        flat = pa.array(np.ascontiguousarray(table.hidden_NSD).reshape(-1))
        arrays["hidden"] = pa.FixedSizeListArray.from_arrays(flat, width)
    written = pa.table(arrays).replace_schema_metadata({HEADER: json.dumps(header, sort_keys=True)})
    partial = path.with_suffix(".partial")
    pq.write_table(written, partial)
    partial.replace(path)


def load_outcomes(path: Path) -> OutcomeTable:
    """Reads a table back, checking that it is whole."""
    import pyarrow.parquet as pq

    try:
        read = pq.read_table(path)
        header = json.loads((read.schema.metadata or {})[HEADER])
    except (OSError, KeyError, ValueError) as error:
        raise LabError(f"{path}: not an outcome table ({error}); measure it again") from error
    if header["format"] != FORMAT:
        raise LabError(f"{path}: outcome table format {header['format']}, this version reads {FORMAT}")
    space = CandidateSpace.from_json(header["space"])
    shape = (-1, header["sequence_length"])
    needed = {"group", "segment", "bytes", *(f"loss/{name}" for name in space.names)}
    if missing := sorted(needed - set(read.column_names)):
        raise LabError(f"{path}: not an outcome table (it lacks {', '.join(missing)}); measure it again")

    def column(name: str) -> np.ndarray:
        return read.column(name).combine_chunks().to_numpy(zero_copy_only=False)

    loss = np.stack([column(f"loss/{name}").reshape(shape) for name in space.names], axis=-1)
    if not np.isfinite(loss[column("segment").reshape(shape) > 0]).all():
        raise LabError(f"{path}: some losses are not finite; measure the table again")
    return OutcomeTable(
        space=space,
        groups=tuple(header["groups"]),
        loss_NSC=loss,
        hidden_NSD=_hidden(read, loss.shape[:2]),
        segment_ids_NS=column("segment").reshape(shape),
        bytes_NS=column("bytes").reshape(shape),
        group_N=column("group").reshape(shape)[:, 0],
    )


def _hidden(read: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The features of all tokens, [N, S, D]."""
    if "hidden" not in read.column_names:
        return np.zeros((*shape, 0), np.float32)
    hidden = read.column("hidden").combine_chunks()
    return hidden.flatten().to_numpy().reshape(*shape, hidden.type.list_size)
