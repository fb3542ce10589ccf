"""What is wrong with other people's outcome tables more often than one would think.

CARROT's published table has the rows of some models in another order than the items: 14 of 18 columns do not
correlate with the others, and the oracle over them looks far too good. RouterArena had to reject results with a
constant token count. Such things are found here, when a table is read.

Legend: N items, C candidates.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from moe_lab.errors import LabError
from moe_lab.questions.table import ItemTable

_ITEMS_TO_JUDGE = 200
_STANDARD_ERRORS = 4.0


def check_items(table: ItemTable, *, refuse_duplicates: bool = False) -> list[str]:
    """What to warn of, one line each.

    Raises:
        LabError: the table cannot be used as it is: no items, NaN, infinite outcomes, negative costs.
    """
    _refuse_broken(table)
    return [
        *_constant_outcomes(table),
        *_costs(table),
        *_misaligned(table),
        *_duplicates(table, refuse_duplicates),
        *_groups(table),
        *_collapsed(table),
    ]


def misaligned_candidates(outcome_NC: np.ndarray) -> list[int]:
    """Candidates whose outcomes do not go with the other candidates' although those go with each other.

    Items differ in difficulty, so outcomes of one item rise and fall together. A column in another order has a
    correlation near 0 with the mean of the aligned others. The reference is built up from the pair of columns that
    agree best, so that many columns in wrong orders cannot hide each other.
    """
    items, candidates = outcome_NC.shape
    varied = [c for c in range(candidates) if outcome_NC[:, c].std() > 0]
    if items < _ITEMS_TO_JUDGE or len(varied) < 3:
        return []
    standard = (outcome_NC[:, varied] - outcome_NC[:, varied].mean(axis=0)) / outcome_NC[:, varied].std(axis=0)
    between = standard.T @ standard / items
    np.fill_diagonal(between, -np.inf)
    chance = _STANDARD_ERRORS / np.sqrt(items)
    first, second = np.unravel_index(int(between.argmax()), between.shape)
    if between[first, second] <= chance:
        return []  # nothing goes with anything: there is no order to be out of
    aligned = {int(first), int(second)}
    while True:
        reference = standard[:, sorted(aligned)].mean(axis=1)
        reference /= reference.std()
        agreed = {c for c in range(len(varied)) if c not in aligned and standard[:, c] @ reference / items > chance}
        if not agreed:
            return [varied[c] for c in range(len(varied)) if c not in aligned]
        aligned |= agreed


def _refuse_broken(table: ItemTable) -> None:
    if not len(table):
        raise LabError(f"{table.name}: no items; a router needs some to learn from")
    for kind, values_NC in (("outcome", table.outcome_NC), ("cost", table.cost_NC)):
        bad = np.argwhere(~np.isfinite(values_NC))
        if len(bad):
            n, c = bad[0].tolist()
            raise LabError(
                f"{table.name}: item {n} has the {kind} {values_NC[n, c]} for {table.names[c]} ({len(bad)} such "
                "cells); fill them in or leave those items out"
            )
    if (table.cost_NC < 0).any():
        n, c = np.argwhere(table.cost_NC < 0)[0].tolist()
        raise LabError(f"{table.name}: item {n} costs {table.cost_NC[n, c]:g} with {table.names[c]}; costs begin at 0")
    if len(table.number_NF) and not np.isfinite(table.number_NF).all():
        f = int(np.argwhere(~np.isfinite(table.number_NF))[0][1])
        raise LabError(f"{table.name}: the feature {table.number_names[f]} has gaps; fill them in or leave it out")


def _constant_outcomes(table: ItemTable) -> list[str]:
    constant = [name for name, column in zip(table.names, table.outcome_NC.T, strict=True) if np.ptp(column) == 0]
    return [f"{name}: the same outcome on every item, so nothing tells when to use it" for name in constant]


def _costs(table: ItemTable) -> list[str]:
    if len(table.names) > 1 and np.ptp(table.cost_C) == 0:
        return [
            f"all candidates cost {table.cost_C[0]:g}: a price changes nothing, so the router goes for quality alone"
        ]
    varies_C = np.ptp(table.cost_NC, axis=0) > 0
    if varies_C.any() and not varies_C.all():
        return [
            f"{table.names[c]}: the same cost on every item while others' costs vary; was it measured?"
            for c in np.flatnonzero(~varies_C & (table.cost_C > 0))  # what is free is free on every item
        ]
    return []


def _misaligned(table: ItemTable) -> list[str]:
    return [
        f"{table.names[c]}: its outcomes do not go with the other candidates', as if its rows were in another order; "
        "join it by key, or leave it out"
        for c in misaligned_candidates(table.outcome_NC)
    ]


def _duplicates(table: ItemTable, refuse: bool) -> list[str]:
    times = Counter(table.keys)
    twice = sum(count - 1 for count in times.values())
    if not twice:
        return []
    told = f"{twice} of {len(table)} items look the same to a router as another one"
    if refuse:
        raise LabError(f"{table.name}: {told}; remove them, or write `duplicates: together`")
    return [f"{told}; those are kept together, so that none is scored by a router that saw its twin"]


def _groups(table: ItemTable) -> list[str]:
    # A table that names no groups has the one called "all"; there is nothing to warn of.
    if len(table.groups) == 1 and table.groups != ("all",):
        return [f"only one group, {table.groups[0]}: there is no group table to compare with"]
    return []


def _collapsed(table: ItemTable) -> list[str]:
    """A candidate that is hardly ever right in a group where another one is: answers that were not parsed look so."""
    if not table.is_probability:
        return []
    overall_C = table.outcome_NC.mean(axis=0)
    groups = []
    for g, group in enumerate(table.groups):
        inside = table.group_N == g
        if inside.sum() < _ITEMS_TO_JUDGE:
            continue
        means_C = table.outcome_NC[inside].mean(axis=0)
        for c in np.flatnonzero((means_C < overall_C / 10) & (means_C < means_C.max() / 3)):
            groups.append(
                f"{table.names[c]}: {means_C[c]:.2f} on {group}, far below its {overall_C[c]:.2f} overall while "
                f"another candidate has {means_C.max():.2f} there; were its answers parsed?"
            )
    return groups
