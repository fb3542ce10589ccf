"""An artifact as a folder that other programs can read: model.safetensors, card.json, and README.md for people.

This is the format of the folder only. What may be in a card, and who may publish it, is decided by who imports it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from moe_lab.errors import LabError, NotFound, Refused, classify, printable
from moe_lab.registry.exact_json import MAX_BYTES, ManifestProblem, exact_json
from moe_lab.registry.manifest import TensorRecord
from moe_lab.registry.references import is_digest
from moe_lab.registry.safetensors_file import not_plain, open_plain, read_safetensors, write_safetensors
from moe_lab.registry.stores.local import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    Array = np.ndarray[Any, Any]

TENSORS, CARD, README = "model.safetensors", "card.json", "README.md"
CARD_FORMAT = 1
_CARD_KEYS = {"format", "ref", "digest", "manifest", "tensors"}
_CODE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".hdf5", ".keras", ".py")
_ARCHIVES = (".tar", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".whl")


@dataclass(frozen=True)
class Card:
    """What a folder says of itself; nothing in it is checked against the tensors yet.

    Attributes:
        ref: `owner/name@version[:width]` that it was exported from, or None where a digest was.
        digest: of the manifest it was exported from.
        sections: the manifest's sections but for `tensors` and `format`.
        blocks: the tensors whose axis 0 counts blocks.
        tensors: the names of all tensors.
    """

    ref: str | None
    digest: str
    sections: Mapping[str, Any]
    tensors: frozenset[str]
    blocks: frozenset[str]


def write_folder(
    folder: Path, card: Card, readme: str, records: Mapping[str, TensorRecord], read: Callable[[str], Array]
) -> None:
    """Writes a folder that was not there: whole or not at all, on disk when this returns, with the umask's modes.

    Args:
        records: shapes and dtypes of the tensors.
        read: returns a tensor by its name.
    """
    with new_folder(folder) as scratch:
        write_file(scratch / CARD, lambda file: file.write(_card_bytes(card)))
        write_file(scratch / README, lambda file: file.write(readme.encode("utf-8")))
        write_file(scratch / TENSORS, lambda file: write_safetensors(file, records, read))


def read_folder(folder: Path) -> tuple[Card, dict[str, Array]]:
    """Reads what `write_folder` wrote, or somebody else by the same rules, as hostile until proven otherwise."""
    _check_names(folder)
    card = _read_card(folder / CARD)
    tensors = read_safetensors(folder / TENSORS)
    if tensors.keys() != card.tensors:
        odd = sorted(tensors.keys() ^ card.tensors)[0]
        raise LabError(f"{folder}: {CARD} and {TENSORS} do not name the same tensors; only one has {odd!a}.")
    return card, tensors


def _check_names(folder: Path) -> None:
    """Anything unknown is refused, so that nobody believes it was imported."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                _check_name(folder, entry)
    except NotADirectoryError:
        raise LabError(_not_a_folder(folder)) from None
    except OSError as error:
        raise classify(error)(f"{folder} cannot be read: {error.strerror}; name a folder made by an export.") from None
    for name in (TENSORS, CARD):
        if not (folder / name).exists():
            raise NotFound(f"{folder} has no {name}; a folder to import holds {TENSORS} and {CARD}.")


def _check_name(folder: Path, entry: os.DirEntry[str]) -> None:
    name = entry.name.lower()
    if name.endswith(_CODE):
        raise Refused(
            f"{folder} holds {entry.name!a}: pickles and other files that can run code are never read, not even if "
            "nothing else is there. Convert it to safetensors where you trust it, and remove it here."
        )
    if name.endswith(_ARCHIVES):
        raise LabError(f"{folder} holds the archive {entry.name!a}: unpack it yourself, and give the folder.")
    if entry.name not in (TENSORS, CARD, README):
        raise LabError(
            f"{folder} holds {entry.name!a}, which is none of {TENSORS}, {CARD}, {README}; move it elsewhere, for it "
            "would not be imported."
        )
    if not entry.is_file(follow_symlinks=False):
        raise not_plain(folder / entry.name)


def _not_a_folder(path: Path) -> str:
    if path.name.lower().endswith(_ARCHIVES):
        return f"{path} is an archive: unpack it yourself, and give the folder."
    return f"{path} is not a folder: give the one that holds {TENSORS} and {CARD}."


def _read_card(path: Path) -> Card:
    with open_plain(path) as file:
        data = file.read(MAX_BYTES + 1)
    try:
        value, _ = exact_json(data)
        return _card(value)
    except ManifestProblem as problem:
        raise LabError(f"{path}: {problem}. Export it again, or mend it.") from None


def _card(value: Any) -> Card:
    if not (isinstance(value, dict) and value.keys() == _CARD_KEYS):
        raise ManifestProblem(f"a card is an object with exactly {', '.join(sorted(_CARD_KEYS))}")
    if type(value["format"]) is not int or value["format"] != CARD_FORMAT:
        raise ManifestProblem(f"this version reads cards of format {CARD_FORMAT}; update moe-lab")
    ref, sections, tensors = value["ref"], value["manifest"], value["tensors"]
    if not (ref is None or isinstance(ref, str)) or not is_digest(value["digest"]):
        raise ManifestProblem("ref is text or null, and digest is sha256- and 64 lowercase hex digits")
    if not (isinstance(sections, dict) and isinstance(tensors, dict)):
        raise ManifestProblem("manifest and tensors are objects")
    for name, flags in tensors.items():
        if not (isinstance(flags, dict) and flags.keys() == {"blocks"} and isinstance(flags["blocks"], bool)):
            raise ManifestProblem(f'tensor {ascii(name)[:60]}: write {{"blocks": true}} or {{"blocks": false}}')
    blocks = frozenset(name for name, flags in tensors.items() if flags["blocks"])
    return Card(ref, value["digest"], sections, frozenset(tensors), blocks)


def _card_bytes(card: Card) -> bytes:
    value = {
        "format": CARD_FORMAT,
        "ref": card.ref,
        "digest": card.digest,
        "manifest": card.sections,
        "tensors": {name: {"blocks": name in card.blocks} for name in card.tensors},
    }
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("ascii")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside the one wanted, which becomes it at the end."""
    scratch = folder.parent / f".{folder.name}.{os.getpid()}-{secrets.token_hex(8)}"
    if os.path.lexists(folder):
        raise Refused(f"{folder} exists already, and nothing is overwritten; name a new folder.")
    try:
        scratch.mkdir()
        yield scratch
        sync_folder(scratch)
        scratch.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise classify(error)(
            f"cannot write {folder}: {error.strerror}. Nothing was exported; check that there is a folder "
            f"{printable(str(folder.parent))} with space in it where you may write."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """The library's own writer leaves mode 0600, which a team cannot read, and does not wait for the disk."""
    with path.open("xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
