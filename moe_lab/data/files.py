"""Finding and reading text files named by globs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from moe_lab.errors import LabError, NotFound, classify


def find_files(root: Path, patterns: Iterable[str], exclude: Iterable[str] = ()) -> list[Path]:
    """The files that match any of `patterns` and none of `exclude`, sorted, each once.

    Patterns are relative to `root` (or absolute, or start with `~`). `**` does not enter linked folders, so
    a loop of links ends; hidden files and folders need a pattern that names the dot, as in a shell.

    Raises:
        LabError: a pattern without wildcards names no file, or `**` shares a path part with other letters.
    """
    excluded = {os.path.realpath(path) for pattern in exclude for path in _expand(root, pattern, strict=False)}
    files: dict[str, Path] = {}
    for pattern in patterns:
        for path in _expand(root, pattern, strict=True):
            real = os.path.realpath(path)
            if real not in excluded:
                files.setdefault(real, path)
    return sorted(files.values())


def _expand(root: Path, pattern: str, *, strict: bool) -> list[Path]:
    path = root / (Path(pattern).expanduser() if pattern.startswith("~/") else pattern)
    if path.is_file():
        return [path]
    parts = path.parts
    fixed = len(root.parts) if path.is_relative_to(root) else 0
    first = next((i for i, part in enumerate(parts) if i >= fixed and any(c in part for c in "*?[")), None)
    if first is None:
        if strict:
            raise NotFound(_missing(path))
        return []
    wild = parts[first:]
    if any("**" in part and part != "**" for part in wild):
        raise LabError(f'"{pattern}": "**" must be a whole path part; write e.g. "docs/**/*.md"')
    if wild[-1] == "**":
        wild = (*wild, "*")
    folder = Path(*parts[:first])
    hidden = any(part.startswith(".") for part in wild)
    matches = sorted(match for match in folder.glob("/".join(wild)) if match.is_file())
    return [match for match in matches if hidden or not _is_hidden(match.relative_to(folder))]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _missing(path: Path) -> str:
    if path.is_dir():
        return f'{path} is a folder; name the files in it, e.g. "{path.name}/**/*.txt"'
    if path.exists():
        return f"{path} is not a regular file; name a text file"
    return f"{path} does not exist; paths are relative to the folder of the YAML file"


def read_text(path: Path) -> str:
    """The file's text, without a byte order mark.

    Raises:
        LabError: it cannot be read, is not UTF-8, or holds NUL bytes (UTF-16 and binary files do).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise classify(error)(f"cannot read {path}: {error.strerror}; fix it or leave the file out") from error
    if b"\0" in data:
        raise LabError(f"{path} holds NUL bytes, so it is not UTF-8 text; convert it or leave it out")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabError(
            f"{path} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; "
            "convert it (iconv -t utf-8) or leave it out"
        ) from error
