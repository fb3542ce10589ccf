"""From a `DataSpec` to its documents, one reader for each kind of source; see docs/data.md to add one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any, cast

from moe_lab.data.documents import (
    Document,
    assign_splits,
    cut_document,
    drop_repeated_lines,
    hash_order,
    within_cap,
)
from moe_lab.data.exercises import exercise_documents
from moe_lab.data.files import find_files, read_text
from moe_lab.data.frozen import ENVIRONMENT, FrozenText
from moe_lab.data.json_lines import json_rows
from moe_lab.data.spec import (
    AnySource,
    DataSpec,
    ExercisesSource,
    FilesSource,
    JsonlSource,
    PackageSource,
    ParquetSource,
    PydocSource,
    ReadmesSource,
    SourceSpec,
    StdlibSource,
)
from moe_lab.errors import LabError, NotFound, classify, did_you_mean

# `pydoc_data` is another source's English; the build flags in `_sysconfigdata*` are no one's code.
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__", "pydoc_data"}
_TEST_FOLDERS = {"test", "tests", "idle_test"}


def read_documents(spec: DataSpec, base: Path, frozen: FrozenText | None = None) -> list[Document]:
    """Reads, cuts, splits and cleans a domain's text.

    Args:
        spec: the domain.
        base: the folder that its paths are relative to: that of the YAML file.
        frozen: where text of the environment is kept from its first reading on; None reads it anew.

    Returns:
        Documents with their split, in an order made from their content.

    Raises:
        LabError: a source is missing, empty or not UTF-8 text; names the source and the file.
    """
    documents: list[Document] = []
    for number, source in enumerate(spec.sources, start=1):
        label = f'data "{spec.name}", source {number} ({source.type})'
        try:
            documents += _read_source(source, base, spec, frozen)
        except (LabError, OSError) as error:
            raise classify(error)(f"{label}: {error}") from error
    return drop_repeated_lines(assign_splits(hash_order(documents), spec.heldout))


def _read_source(source: AnySource, base: Path, spec: DataSpec, frozen: FrozenText | None) -> list[Document]:
    texts: Iterable[Document] = _READERS[type(source)](source, base, spec)
    if frozen is not None and isinstance(source, ENVIRONMENT):
        texts = frozen.documents(source, texts)
    pieces = (piece for document in texts for piece in _prepared(document, spec))
    ordered = hash_order(pieces)
    if not ordered:
        raise LabError("holds no text; every file or row is empty")
    kept = within_cap(ordered, source.max_bytes)
    if not kept:
        size = len(ordered[0].text.encode())
        raise LabError(f"max_bytes={source.max_bytes} is less than its first document ({size} bytes); raise it")
    return kept


def _prepared(document: Document, spec: DataSpec) -> Iterator[Document]:
    text = document.text.replace("\r\n", "\n").replace("\r", "\n")
    if not text or text.isspace():
        return
    yield from cut_document(Document(text, document.source, document.level, document.split), spec.longest_document)


def _read_files(source: FilesSource, base: Path, _: DataSpec) -> Iterator[Document]:
    for path in _matches(base, source.paths, source.exclude):
        yield Document(read_text(path), f"files:{_shown(path, base)}")


def _read_jsonl(source: JsonlSource, base: Path, _: DataSpec) -> Iterator[Document]:
    for path in _matches(base, (source.path,)):
        for number, row in json_rows(path, read_text(path)):
            text = _json_column(row, source.column, f"{path}:{number}")
            yield Document(text, f"jsonl:{_shown(path, base)}:{number}")


def _json_column(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise NotFound(f'{where}: no column "{column}".{did_you_mean(column, row)}')
    text = row[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise LabError(f'{where}: column "{column}" holds {text!r}, not text')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LabError(f"{where}: half of a surrogate pair at character {error.start}, not Unicode text") from error
    return text


def _read_parquet(source: ParquetSource, base: Path, _: DataSpec) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    for path in _matches(base, (source.path,)):
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                _check_parquet_column(file.schema_arrow, source.column, path)
                row = 0
                for batch in file.iter_batches(columns=[source.column]):
                    for text in _parquet_texts(batch.column(0), f'{path}: column "{source.column}"', row):
                        row += 1
                        yield Document(text or "", f"parquet:{_shown(path, base)}:{row}")
        except (pyarrow.ArrowException, OSError) as error:
            raise classify(error)(f"{path}: not readable as Parquet: {str(error).splitlines()[0]}") from error


def _parquet_texts(column: Any, where: str, before: int) -> list[str | None]:
    """The cells of a column of text, which Arrow writes without looking at; `before` rows of the file came earlier."""
    try:
        texts: list[str | None] = column.to_pylist()
        return texts
    except UnicodeDecodeError:
        for row, cell in enumerate(column, start=before + 1):
            try:
                cell.as_py()
            except UnicodeDecodeError as error:
                raise LabError(
                    f"{where}, row {row} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; "
                    "write the file anew from decoded text"
                ) from error
        raise


def _check_parquet_column(schema: Any, column: str, path: Path) -> None:
    if column not in schema.names:
        raise NotFound(f'{path}: no column "{column}".{did_you_mean(column, schema.names)}')
    if schema.names.count(column) > 1:
        raise LabError(f'{path}: {schema.names.count(column)} columns are named "{column}"; rename all but one')
    from pyarrow import types

    kind = schema.field(column).type
    values = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(values) or types.is_large_string(values) or types.is_string_view(values)):
        raise LabError(f'{path}: column "{column}" holds {kind}, not text')


def _read_stdlib(source: StdlibSource, _base: Path, _: DataSpec) -> Iterator[Document]:
    root = sysconfig.get_path("stdlib")
    pruned = _NOT_STDLIB | (_TEST_FOLDERS if source.exclude_tests else set())
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - pruned)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                try:
                    text = path.read_bytes().decode("utf-8-sig")
                except UnicodeDecodeError:
                    continue  # Python's own tests of other encodings are no text for us
                yield Document(text, f"stdlib:{path.relative_to(root).as_posix()}")


def _read_pydoc(_source: PydocSource, _base: Path, _: DataSpec) -> Iterator[Document]:
    from pydoc_data.topics import topics

    for topic, text in topics.items():
        yield Document(text, f"pydoc:{topic}")


def _read_package(source: PackageSource, _base: Path, _: DataSpec) -> Iterator[Document]:
    for pattern in source.globs:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts or pattern.startswith("~"):
            raise LabError(f'glob "{pattern}" leaves the package; write it relative to the package\'s folder')
    folders = _package_folders(source.name)
    paths = [(folder, path) for folder in folders for path in find_files(folder, source.globs, source.exclude)]
    if not paths:
        where = ", ".join(map(str, folders))
        raise NotFound(f"no file of package {source.name} matches {list(source.globs)} in {where}; check the globs")
    for folder, path in paths:
        yield Document(read_text(path), f"package:{source.name}/{_shown(path, folder)}")


def _package_folders(name: str) -> list[Path]:
    if not name.isidentifier():
        raise LabError(f'package "{name}": give the name of a top-level package, as one imports it')
    try:
        module_spec = importlib.util.find_spec(name)
    except ValueError:  # __main__ and the like have no spec
        module_spec = None
    if module_spec is None:
        installed = importlib.metadata.packages_distributions()
        raise NotFound(f'package "{name}" is not installed; install it.{did_you_mean(name, installed)}')
    if not module_spec.submodule_search_locations:
        raise LabError(f'"{name}" is a single module, not a package with files in it; use a files source')
    return [Path(folder) for folder in module_spec.submodule_search_locations]


def _read_readmes(source: ReadmesSource, _base: Path, _: DataSpec) -> Iterator[Document]:
    wanted = {_distribution_name(name) for name in source.distributions}
    seen = set()
    for distribution in importlib.metadata.distributions():
        try:
            metadata = cast(Message, distribution.metadata)
        except UnicodeDecodeError:
            continue  # someone else's broken installation, which no change of the spec could mend
        name = _distribution_name(metadata.get("Name") or "")
        if name and name not in seen:
            seen.add(name)  # the first on the path is the one that is imported
            if wanted and name not in wanted:
                continue
            text = metadata.get("Description") or ""
            yield Document("" if text.strip() == "UNKNOWN" else text, f"readmes:{name}")
    if missing := sorted(wanted - seen):
        raise NotFound(
            f"not installed: {', '.join(missing)}; install it or leave it out of `distributions`."
            + did_you_mean(missing[0], seen)
        )


def _distribution_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _read_exercises(source: ExercisesSource, _base: Path, spec: DataSpec) -> Iterator[Document]:
    return exercise_documents(source.families, source.levels, source.count, source.seed, spec.heldout)


def _matches(base: Path, patterns: tuple[str, ...], exclude: tuple[str, ...] = ()) -> list[Path]:
    paths = find_files(base, patterns, exclude)
    if not paths:
        raise NotFound(
            f"no file matches {', '.join(patterns)} in {base}; paths are relative to the folder of the YAML file"
        )
    return paths


def _shown(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


_READERS: dict[type[SourceSpec], Callable[[Any, Path, DataSpec], Iterator[Document]]] = {
    FilesSource: _read_files,
    JsonlSource: _read_jsonl,
    ParquetSource: _read_parquet,
    StdlibSource: _read_stdlib,
    PydocSource: _read_pydoc,
    PackageSource: _read_package,
    ReadmesSource: _read_readmes,
    ExercisesSource: _read_exercises,
}
