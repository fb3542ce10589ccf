"""How tensors are called in manifests: the one place where such a name is put together and taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


UNNAMED_PARTS = frozenset({"home_evidence", "rung_loss"})
"""Parts of a router that no name spells: `home_evidence.ngram_scores` was published as `ngram_scores` before there were
parts, and still is."""


def parameter_name(path: Iterable[Any]) -> str:
    """The name of a parameter of a trunk or router: its path in the model, `layers.0.attention.key.weight`."""
    first, *rest = path
    return ".".join(map(str, rest if rest and first in UNNAMED_PARTS else (first, *rest)))


def layer_names(layer: int, parts: Sequence[str]) -> tuple[str, ...]:
    """The names of a module's tensors in one layer: `layers.3.gate` for the part `gate`."""
    return tuple(f"layers.{layer}.{part}" for part in parts)


def by_layer(tensors: Mapping[str, T]) -> dict[int, dict[str, T]]:
    """A module's tensors, or whatever is kept by their names, by layer and then by part. Other names are left out."""
    layers: dict[int, dict[str, T]] = {}
    for name, tensor in tensors.items():
        match name.split("."):
            case ["layers", layer, part] if layer.isdecimal():
                layers.setdefault(int(layer), {})[part] = tensor
    return dict(sorted(layers.items()))


def find_ffn_part(name: str) -> tuple[int, str, str] | None:
    """Of a trunk's parameter, where it is one of its own FFN: layer, part and leaf, as `(3, "gate", "weight")`."""
    match name.split("."):
        case ["layers", layer, "ffn", part, leaf] if layer.isdecimal():
            return int(layer), part, leaf
    return None
