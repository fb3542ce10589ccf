"""Parquet files whose metadata says in JSON what their columns mean."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.errors import Damaged, LabError, NotFound, Refused
from moe_lab.files import open_replacement


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
        with open_replacement(path) as file:
            pq.write_table(written, file, write_page_checksum=True)

    def read(self, path: Path, needed: Callable[[dict[str, Any]], Iterable[str]]) -> ReadTable:
        """Reads a file back; `needed` says from its header which columns it must have.

        Raises:
            LabError: it is no such file, of another version, damaged, lacks a column or has one twice.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        article = "an" if self.name[0] in "aeiou" else "a"

        def refused(why: object) -> LabError:
            reason = str(why).strip().partition("\n")[0] or type(why).__name__
            kind = NotFound if isinstance(why, FileNotFoundError) else Damaged
            return kind(f"{path}: not {article} {self.name} ({reason}); {self.remedy}")

        try:
            # Without the checksums a damaged page of numbers reads as other numbers.
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                read = file.read()
            names = list(read.column_names)
            metadata = read.schema.metadata or {}
            if self.key not in metadata:
                raise refused(f"its metadata has no {self.key.decode()}")
            header = json.loads(metadata[self.key])
            version = header["format"]
        except (OSError, KeyError, TypeError, ValueError, MemoryError, pa.ArrowException) as error:
            raise refused(error) from error
        if version != self.version:
            raise Refused(f"{path}: {self.name} format {version}, this version reads {self.version}")
        try:
            wanted = list(needed(header))
        except (KeyError, TypeError, ValueError) as error:
            raise refused(f"its header is not whole: {error}") from error
        if missing := sorted(set(wanted) - set(names)):
            raise refused(f"it lacks {', '.join(missing)}")
        if twice := sorted(name for name in set(wanted) if names.count(name) > 1):
            raise refused(f'it has the column "{twice[0]}" twice')
        return ReadTable(path, header, read, refused)


@dataclasses.dataclass(frozen=True)
class ReadTable:
    """A file that was read: its header, and its columns as an Arrow table."""

    path: Path
    header: dict[str, Any]
    arrow: Any
    refused: Callable[[object], LabError]
    """The error for a file that turns out not to be whole: why."""

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def __contains__(self, name: str) -> bool:
        return name in self.arrow.column_names

    def column(self, name: str) -> np.ndarray:
        """A column of numbers; a null among floating-point ones is NaN."""
        import pyarrow as pa

        column = self.arrow.column(name)
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise self.refused(f'the column "{name}" is of {column.type}, not of numbers')
        if column.null_count and pa.types.is_integer(column.type):
            raise self.refused(f'the column "{name}" has {column.null_count} nulls')
        values: np.ndarray = column.combine_chunks().to_numpy(zero_copy_only=False)
        return values

    def texts(self, name: str) -> tuple[str, ...]:
        """A column of texts. Arrow does not look whether they are UTF-8 when it writes."""
        import pyarrow as pa

        column = self.arrow.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise self.refused(f'the column "{name}" is of {column.type}, not of text')
        decoded: list[str] = []
        for row, raw in enumerate(column.cast(pa.large_binary()).to_pylist(), start=1):
            try:
                decoded.append(raw.decode())
            except AttributeError:
                raise self.refused(f'the column "{name}" is null in row {row}') from None
            except UnicodeDecodeError as error:
                raise self.refused(f'the column "{name}" is not UTF-8 in row {row}: {error}') from error
        return tuple(decoded)
