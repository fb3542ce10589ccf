"""A folder as Hugging Face keeps models: config.json, tokenizer.json, and safetensors in one file or several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from moe_lab.errors import Damaged, NotFound, Refused, printable
from moe_lab.registry.safetensors_file import TensorPlace, open_plain, read_one, read_places
from moe_lab.trunks.tensor_table import Stored

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
CHAT_TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_JSON_BYTES = 64 << 20
MAX_SHARDS = 4096


class ShardedTensors:
    """The tensors of a folder, of one file or of all those that its index names.

    Attributes:
        label: how errors call it.
        stored: the tensors by name.
    """

    def __init__(self, folder: Path) -> None:
        self.label = str(folder)
        index = _weight_map(folder)
        shards = {ONE_FILE: (folder / ONE_FILE).resolve()} if index is None else _shards(folder, index)
        self._files: dict[str, tuple[Path, TensorPlace]] = {}
        for path in shards.values():
            for name, place in read_places(path).items():
                if name in self._files:
                    raise Refused(f"{folder}: tensor {printable(name)[:80]} is in two files; keep the model's own.")
                self._files[name] = (path, place)
        if index is not None:
            held = {name: path for name, (path, _) in self._files.items()}
            _check_index(folder, {name: shards[file] for name, file in index.items()}, held)
        self.stored: Mapping[str, Stored] = {
            name: Stored(place.dtype, place.shape) for name, (_, place) in self._files.items()
        }

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor."""
        path, place = self._files[name]
        return read_one(path, name, place)


def _weight_map(folder: Path) -> Mapping[str, str] | None:
    """The file of each tensor as the index says it; None where one file holds all."""
    single, index = folder / ONE_FILE, folder / INDEX
    if single.exists() and index.exists():
        raise Refused(f"{folder} has {ONE_FILE} and {INDEX}; keep the one that belongs to the model.")
    if single.exists():
        return None
    if not index.exists():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        also = f" {printable(pickles[0])} is a pickle, which can run code and is never read." if pickles else ""
        raise NotFound(f"{folder} has neither {ONE_FILE} nor {INDEX}.{also} Convert the model to safetensors.")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise Refused(f"{index} has no weight_map of tensors and files; take the folder anew.")
    return names


def _shards(folder: Path, index: Mapping[str, str]) -> dict[str, Path]:
    """The files that an index names, each beside it."""
    names = sorted(set(index.values()))
    if len(names) > MAX_SHARDS:
        raise Refused(f"{folder / INDEX} names {len(names):,} files; at most {MAX_SHARDS:,} are read.")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise Refused(
                f"{folder / INDEX} names the file {printable(name)[:80]}, which is no safetensors file beside it."
            )
        if not (folder / name).exists():
            raise NotFound(f"{folder / INDEX} names {name}, which is not there; download it too.")
    return {name: (folder / name).resolve() for name in names}


def _check_index(folder: Path, says: Mapping[str, Path], held: Mapping[str, Path]) -> None:
    """An index that says otherwise than the files is not believed."""
    for name in sorted(says.keys() ^ held.keys()) or (name for name in says if says[name] != held[name]):
        raise Damaged(
            f"{folder / INDEX} and the files do not agree on where tensor {printable(name)[:80]} is; "
            "take the folder anew."
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a key twice, or a number that is none, is refused."""
    try:
        data = read_file(path, MAX_JSON_BYTES)
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise Refused(f"{path} is nested too deeply to be read; take the file anew.") from None
    except ValueError as error:
        raise Refused(f"{path} is no JSON that can be read: {printable(str(error))[:200]}; take it anew.") from None
    if not isinstance(value, dict):
        raise Refused(f"{path} holds no JSON object; take the file anew.")
    return value


def read_file(path: Path, most: int) -> bytes:
    """A small file."""
    if not path.exists():
        raise NotFound(f"{path} is not there; a model's folder holds {CONFIG}, {TOKENIZER} and safetensors.")
    with open_plain(path.resolve()) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise Refused(f"{path} has more than {most:,} bytes, which no such file needs.")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is there twice")
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no number")


def read_ends(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids after which the model stops writing: of `generation_config.json`, else of `config.json`."""
    path = folder / GENERATION
    says = read_json(path).get("eos_token_id") if path.exists() else None
    value = config.get("eos_token_id") if says is None else says
    ends = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(end) is int and end >= 0 for end in ends):
        raise Refused(f"{folder}: eos_token_id is {ascii(value)[:60]}; it is an id, or a list of them.")
    return tuple(ends)


def read_chat_template(folder: Path) -> str | None:
    """How a conversation is written down for the model: a file of its own, or what `tokenizer_config.json` says.

    Of several, the one called `default`.
    """
    own, config = folder / CHAT_TEMPLATE, folder / TOKENIZER_CONFIG
    if own.exists():
        return read_file(own, MAX_JSON_BYTES).decode(errors="replace")
    says = read_json(config).get("chat_template") if config.exists() else None
    if isinstance(says, list):
        named = {entry.get("name"): entry.get("template") for entry in says if isinstance(entry, dict)}
        says = named.get("default")
    if not isinstance(says, str | None):
        raise Refused(f"{config}: chat_template is {ascii(says)[:60]}; it is a text.")
    return says
