"""Item tables: what every candidate scored on every question, and what it cost.

One Parquet file, one row per item; a JSON header in the file's metadata names the candidates. The per-token table of
composed models is `moe_lab.routing.outcomes`.

Legend: N items, C candidates, F numeric features.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moe_lab.config import canonical_json
from moe_lab.data.tables import TableFormat
from moe_lab.errors import LabError, NotFound, did_you_mean

FILE = TableFormat(
    key=b"moe_lab_items",
    version=1,
    name="item table",
    remedy="make one from a config of kind `outcomes` with save_items",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemCandidate:
    """One candidate of an item table."""

    name: str
    size: float | None = None
    family: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemTable:
    """Measured outcomes of all candidates on the same items. At least one of text, group and numbers is there."""

    name: str
    candidates: tuple[ItemCandidate, ...]
    outcome: Literal["score", "loss"]  # what was measured
    outcome_NC: np.ndarray  # float64
    cost_NC: np.ndarray  # float64, not negative
    cost_unit: str
    outcome_unit: str = ""
    text_N: tuple[str, ...] | None = None
    groups: tuple[str, ...] = ("all",)
    group_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    number_names: tuple[str, ...] = ()
    number_NF: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    licence: str = ""  # for the report alone: no part of the digest, nor of the file

    def __len__(self) -> int:
        return len(self.outcome_NC)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(candidate.name for candidate in self.candidates)

    @cached_property
    def quality_NC(self) -> np.ndarray:
        """Higher is better: the scores, or the losses with their sign turned."""
        return self.outcome_NC if self.outcome == "score" else -self.outcome_NC

    @cached_property
    def cost_C(self) -> np.ndarray:
        """Mean cost of each candidate: all that a router knows of cost before anything has run."""
        return self.cost_NC.mean(axis=0)

    @property
    def is_probability(self) -> bool:
        """Whether every outcome lies in [0, 1], so that a predicted one can be read as a chance."""
        return self.outcome == "score" and bool((self.outcome_NC >= 0).all() and (self.outcome_NC <= 1).all())

    @property
    def has_groups(self) -> bool:
        """Whether the items are of more than one group; else a group table would be one candidate for all."""
        return len(self.groups) > 1

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """What a router can see of each item, as text: equal keys are duplicates."""
        texts = self.text_N or ("",) * len(self)
        numbers = self.number_NF if len(self.number_NF) else np.zeros((len(self), 0))
        # Where there is text it tells items apart by itself: a question filed under two subjects is one question.
        if self.text_N is not None:
            return tuple(
                f"{' '.join(text.split())}\0{row.tobytes().hex()}" for text, row in zip(texts, numbers, strict=True)
            )
        # Items that are told apart by a group alone are no duplicates of each other.
        return tuple(row.tobytes().hex() or str(i) for i, row in enumerate(numbers))

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in the table."""
        hashed = hashlib.sha256(canonical_json(_header(self)).encode())
        for array in (self.outcome_NC, self.cost_NC, self.group_N, self.number_NF):
            hashed.update(np.ascontiguousarray(array).tobytes())
        for text in self.text_N or ():
            hashed.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return f"sha256-{hashed.hexdigest()}"

    def rows(self, index: np.ndarray) -> ItemTable:
        """Some of the items."""
        return dataclasses.replace(
            self,
            outcome_NC=self.outcome_NC[index],
            cost_NC=self.cost_NC[index],
            text_N=None if self.text_N is None else tuple(self.text_N[i] for i in np.arange(len(self))[index]),
            group_N=self.group_N[index],
            number_NF=self.number_NF[index],
        )

    def only(self, names: Collection[str]) -> ItemTable:
        """Some of the candidates, in the order given."""
        if unknown := [name for name in names if name not in self.names]:
            raise NotFound(f'{self.name}: unknown candidate "{unknown[0]}".{did_you_mean(unknown[0], self.names)}')
        kept = [self.names.index(name) for name in names]
        return dataclasses.replace(
            self,
            candidates=tuple(self.candidates[c] for c in kept),
            outcome_NC=self.outcome_NC[:, kept],
            cost_NC=self.cost_NC[:, kept],
        )


def make_table(
    name: str,
    candidates: tuple[ItemCandidate, ...],
    outcome_NC: Any,
    cost: Any,
    *,
    outcome: Literal["score", "loss"] = "score",
    cost_unit: str = "cost",
    outcome_unit: str = "",
    text: Any = None,
    group: Any = None,
    numbers: dict[str, Any] | None = None,
) -> ItemTable:
    """An item table from plain arrays: costs `[C]` or `[N, C]`, groups as labels, numbers by name.

    Raises:
        LabError: a text or label is missing, or is not Unicode text.
    """
    for what, values in (("text", text), ("group", group)):
        _require_text(f"{name}: {what}", values if values is not None else ())
    outcomes = np.asarray(outcome_NC, np.float64)
    labels, codes = (
        np.unique([str(label) for label in group], return_inverse=True)
        if group is not None
        else (
            np.array(["all"]),
            np.zeros(len(outcomes), np.int64),
        )
    )
    columns = [np.asarray(values, np.float64) for values in (numbers or {}).values()]
    return ItemTable(
        name=name,
        candidates=candidates,
        outcome=outcome,
        outcome_NC=outcomes,
        cost_NC=np.broadcast_to(np.asarray(cost, np.float64), outcomes.shape),
        cost_unit=cost_unit,
        outcome_unit=outcome_unit,
        text_N=None if text is None else tuple(text),
        groups=tuple(labels.tolist()),
        group_N=codes.reshape(-1).astype(np.int64),
        number_names=tuple(numbers or ()),
        number_NF=np.stack(columns, axis=1) if columns else np.zeros((len(outcomes), 0)),
    )


def _require_text(where: str, values: Iterable[Any]) -> None:
    for n, value in enumerate(values):
        if value is None or value != value:
            raise LabError(f"{where} of item {n} is {value}; fill it in or leave that item out")
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise LabError(f"{where} of item {n} holds half of a surrogate pair, not Unicode text; mend it") from error


def save_items(table: ItemTable, path: Path, provenance: dict[str, Any] | None = None) -> None:
    """Writes the table; `provenance` says where it came from."""
    columns: dict[str, Any] = {"group": table.group_N}
    if table.text_N is not None:
        columns["text"] = table.text_N
    for c, name in enumerate(table.names):
        columns[f"{table.outcome}/{name}"] = np.ascontiguousarray(table.outcome_NC[:, c])
        columns[f"cost/{name}"] = np.ascontiguousarray(table.cost_NC[:, c])
    for f, name in enumerate(table.number_names):
        columns[f"number/{name}"] = np.ascontiguousarray(table.number_NF[:, f])
    FILE.write(path, columns, {**_header(table), "provenance": provenance or {}})


def load_items(path: Path) -> ItemTable:
    """Reads a table back, checking that it is whole."""
    read = FILE.read(path, _columns)
    header = read.header
    candidates, groups = _cards(header), tuple(header["groups"])
    group_N = read.column("group")
    if len(group_N) and not (group_N.min() >= 0 and group_N.max() < len(groups)):
        raise read.refused(f"its groups are {group_N.min()} to {group_N.max()}, and {len(groups)} are named")

    def stacked(kind: str, names: Iterable[str]) -> np.ndarray:
        values = [read.column(f"{kind}/{name}") for name in names]
        return np.stack(values, axis=1) if values else np.zeros((len(read), 0))

    named = tuple(candidate.name for candidate in candidates)
    return ItemTable(
        name=header["name"],
        candidates=candidates,
        outcome=header["outcome"],
        outcome_NC=stacked(header["outcome"], named),
        cost_NC=stacked("cost", named),
        cost_unit=header["cost_unit"],
        outcome_unit=header.get("outcome_unit", ""),
        text_N=read.texts("text") if header["text"] else None,
        groups=groups,
        group_N=group_N,
        number_names=tuple(header["numbers"]),
        number_NF=stacked("number", header["numbers"]),
    )


def _cards(header: dict[str, Any]) -> tuple[ItemCandidate, ...]:
    return tuple(ItemCandidate(**candidate) for candidate in header["candidates"])


def _columns(header: dict[str, Any]) -> list[str]:
    named = [f"{kind}/{card.name}" for kind in (header["outcome"], "cost") for card in _cards(header)]
    for key, kind in (("name", str), ("cost_unit", str), ("groups", list), ("numbers", list)):
        if not isinstance(header[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")
    if header["outcome"] not in ("score", "loss"):
        raise ValueError(f"outcome {header['outcome']}")
    return [*named, "group", *(f"number/{name}" for name in header["numbers"]), *(["text"] if header["text"] else [])]


def _header(table: ItemTable) -> dict[str, Any]:
    return {
        "format": FILE.version,
        "name": table.name,
        "candidates": [dataclasses.asdict(candidate) for candidate in table.candidates],
        "outcome": table.outcome,
        "cost_unit": table.cost_unit,
        "groups": list(table.groups),
        "numbers": list(table.number_names),
        "text": table.text_N is not None,
        # Left out where there is none, so that tables without it keep their digest.
        **({"outcome_unit": table.outcome_unit} if table.outcome_unit else {}),
    }
