"""From anyone's files, by a config of kind `outcomes`, to an item table that passed its checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.config import load_config
from moe_lab.errors import LabError
from moe_lab.questions.cells import is_missing, read_number, read_text, same_answer
from moe_lab.questions.checks import check_items
from moe_lab.questions.items import Column, Items, read_items
from moe_lab.questions.spec import CandidateSpec, OutcomesSpec
from moe_lab.questions.table import ItemCandidate, ItemTable, load_items, make_table


def read_table(path: Path) -> tuple[ItemTable, list[str]]:
    """The table of a config of kind `outcomes`, or of a saved `.parquet`, and what its checks warn of.

    Raises:
        LabError: a file or column is missing, or a check refuses the table.
    """
    if path.suffix == ".parquet":
        table = load_items(path)
        return table, check_items(table)
    spec = load_config(path, kind="outcomes")
    assert isinstance(spec, OutcomesSpec)
    return map_table(spec, path.parent)


def map_table(spec: OutcomesSpec, base: Path) -> tuple[ItemTable, list[str]]:
    """The table that a mapping describes, and what its checks warn of."""
    items = read_items(spec, base)
    outcome_NC = np.stack(_outcomes(items, spec), axis=1) * spec.outcome_scale
    cost_NC = np.stack([_costs(items, candidate, spec) for candidate in spec.candidates], axis=1)
    texts = {name: _texts(items, name) for name in (*spec.text, *([spec.group] if spec.group else []))}
    numbers = {name: _numbers(items.column(name), name) for name in spec.numbers}
    kept, warnings = _without_missing(outcome_NC, cost_NC, texts, spec, items.where)
    for c, candidate in enumerate(spec.candidates):
        if candidate.mean_cost_column is not None:
            cost_NC[:, c] = _mean_cost(items, candidate, spec, kept)
    table = make_table(
        spec.name,
        tuple(ItemCandidate(name=c.name, size=c.size, family=c.family) for c in spec.candidates),
        outcome_NC[kept],
        cost_NC[kept],
        outcome=spec.outcome,
        cost_unit=spec.cost_unit,
        outcome_unit=spec.outcome_unit,
        text=["\n".join(str(texts[name][i]) for name in spec.text) for i in kept] if spec.text else None,
        group=[texts[spec.group][i] for i in kept] if spec.group else None,
        numbers={name: values[kept] for name, values in numbers.items()},
    )
    table = dataclasses.replace(table, licence=spec.licence)
    return table, items.notes + warnings + check_items(table, refuse_duplicates=spec.duplicates == "refuse")


def _outcomes(items: Items, spec: OutcomesSpec) -> list[np.ndarray]:
    """What each candidate scored; NaN where that is missing."""
    right = items.column(spec.right_when_equals) if spec.right_when_equals else None
    columns: list[np.ndarray] = []
    readers: dict[tuple[int, str], str] = {}
    for candidate in spec.candidates:
        name = candidate.column or candidate.name
        column = items.column(name)
        if (other := readers.setdefault(column.origin, candidate.name)) != candidate.name:
            raise LabError(
                f'{column.rows[0].path}: {other} and {candidate.name} have the same column, "{column.origin[1]}"; give '
                "each its own, with the name of its file where files have columns of one name"
            )
        columns.append(_numbers(column, name) if right is None else _right(column, name, right))
    return columns


def _numbers(column: Column, name: str) -> np.ndarray:
    return np.array([read_number(v, row.where, name) for v, row in zip(column.values, column.rows, strict=True)])


def _right(column: Column, name: str, right: Column) -> np.ndarray:
    """1 where the answer is the right one, and 0 where it is not or there is none; NaN where nobody knows it."""
    found = np.full(len(column.values), np.nan)
    for n, (answer, known, row) in enumerate(zip(column.values, right.values, column.rows, strict=True)):
        if is_missing(known):
            continue
        try:
            found[n] = same_answer(answer, known)
        except LabError as error:
            raise type(error)(f"{row.where}: {name}: {error}") from None
    return found


def _texts(items: Items, name: str) -> list[str | None]:
    column = items.column(name)
    return [read_text(value, row.where, name) for value, row in zip(column.values, column.rows, strict=True)]


def _costs(items: Items, candidate: CandidateSpec, spec: OutcomesSpec) -> np.ndarray:
    """What each item costs; what has a mean has it later, when it is known which items are kept."""
    scale = spec.cost_scale if candidate.cost_scale is None else candidate.cost_scale
    if candidate.cost_column is not None:
        return _numbers(items.column(candidate.cost_column), candidate.cost_column) * scale
    return np.full(len(items), (candidate.cost or 0.0) * scale)


def _mean_cost(items: Items, candidate: CandidateSpec, spec: OutcomesSpec, kept: np.ndarray) -> float:
    """The mean of a column over the kept items that have it: what one pays, all in all, for a constant."""
    column = candidate.mean_cost_column
    assert column is not None
    each = candidate.model_copy(update={"cost_column": column})
    values = _costs(items, each, spec)[kept]
    there = values[~np.isnan(values)]
    if not len(there):
        raise LabError(f"{items.where}: {column} has no numbers to take the mean of for {candidate.name}")
    return float(there.mean())


def _without_missing(
    outcome_NC: np.ndarray, cost_NC: np.ndarray, texts: dict[str, list[Any]], spec: OutcomesSpec, where: Path
) -> tuple[np.ndarray, list[str]]:
    """The items that have all that a router learns from, and what to say of the others."""
    missing_NC = np.isnan(outcome_NC) | np.isnan(cost_NC)
    missing_NL = np.array([[text is None for text in column] for column in texts.values()], bool)
    missing_NL = missing_NL.reshape(len(texts), len(outcome_NC)).T
    lacking_N = missing_NC.any(axis=1) | missing_NL.any(axis=1)
    if not lacking_N.any():
        return np.arange(len(outcome_NC)), []
    told = f"{where}: {int(lacking_N.sum())} of {len(lacking_N)} items lack " + " or ".join(
        [
            *_lack("an outcome or a cost, most often of", missing_NC, [c.name for c in spec.candidates]),
            *_lack("their question or group, most often", missing_NL, list(texts)),
        ]
    )
    for missing, what in ((missing_NC, "candidate"), (missing_NL, "column")):
        if missing.all(axis=0).any():
            raise LabError(f"{told}; it has none at all, so leave that {what} out")
    if spec.missing == "refuse":
        raise LabError(f"{told}; fill them in, or write `missing: drop` to leave those items out")
    if lacking_N.all():
        raise LabError(f"{told}; no item has them all, so leave a candidate out")
    return np.flatnonzero(~lacking_N), [f"{told}; those items were dropped"]


def _lack(what: str, missing: np.ndarray, names: Sequence[str]) -> list[str]:
    """What items lack, and where most of it is."""
    if not missing.any():
        return []
    most = int(missing.sum(axis=0).argmax())
    return [f"{what} {names[most]} ({int(missing[:, most].sum())})"]
