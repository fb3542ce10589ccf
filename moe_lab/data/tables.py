"""Parquet files whose metadata says in JSON what their columns mean."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.errors import LabError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableFormat:
    """One kind of such files.

    Attributes:
        key: of the header in the file's metadata.
        version: this version reads no other.
        name: what errors call such a file, such as `outcome table`.
        remedy: what to do about one that is not whole.
    """

    key: bytes
    version: int
    name: str
    remedy: str

    def write(self, path: Path, columns: Mapping[str, Any], header: Mapping[str, Any]) -> None:
        """Writes Arrow arrays or numpy columns beside a header, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = json.dumps({**header, "format": self.version}, sort_keys=True)
        written = pa.table(dict(columns)).replace_schema_metadata({self.key: text})
        partial = path.with_suffix(".partial")
        pq.write_table(written, partial)
        partial.replace(path)

    def read(self, path: Path, needed: Callable[[dict[str, Any]], Iterable[str]]) -> ReadTable:
        """Reads a file back; `needed` says from its header which columns it must have.

        Raises:
            LabError: it is no such file, of another version, or lacks a column.
        """
        import pyarrow.parquet as pq

        article = "an" if self.name[0] in "aeiou" else "a"
        try:
            read = pq.read_table(path)
            header = json.loads((read.schema.metadata or {})[self.key])
        except (OSError, KeyError, ValueError) as error:
            raise LabError(f"{path}: not {article} {self.name} ({error}); {self.remedy}") from error
        if header["format"] != self.version:
            raise LabError(f"{path}: {self.name} format {header['format']}, this version reads {self.version}")
        if missing := sorted(set(needed(header)) - set(read.column_names)):
            raise LabError(f"{path}: not {article} {self.name} (it lacks {', '.join(missing)}); {self.remedy}")
        return ReadTable(header, read)


@dataclasses.dataclass(frozen=True)
class ReadTable:
    """A file that was read: its header, and its columns as an Arrow table."""

    header: dict[str, Any]
    arrow: Any

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def __contains__(self, name: str) -> bool:
        return name in self.arrow.column_names

    def column(self, name: str) -> np.ndarray:
        """A column of numbers."""
        values: np.ndarray = self.arrow.column(name).combine_chunks().to_numpy(zero_copy_only=False)
        return values
