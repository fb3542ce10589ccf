"""Items that look the same stay together: in folds, and when they are drawn for intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_lab.errors import LabError
from moe_lab.questions.spec import QuestionRouterSettings
from moe_lab.questions.table import ItemTable


def number_keys(keys: Sequence[str]) -> np.ndarray:
    """A number for each item [N], equal for equal keys, counted from 0 in order of first appearance."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(key, len(number)) for key in keys], np.int64)


def deal_folds(keys: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each item [N]: of nearly equal size, at random, items of equal key in the same one."""
    kind_N = number_keys(keys)
    kinds = int(kind_N.max(initial=-1)) + 1
    return (np.random.default_rng(seed).permutation(kinds) % folds)[kind_N]


def evaluation_folds(table: ItemTable, spec: QuestionRouterSettings) -> np.ndarray:
    """The fold of each item [N], counted from 0: dealt at random, or its group."""
    if spec.folds == "groups":
        fold_N = np.unique(table.group_N, return_inverse=True)[1]
        if fold_N.max() < 1:
            raise LabError(
                f"{table.name}: `folds: groups` needs two groups or more; name a `group` column, or give a number"
            )
        return fold_N
    fold_N = deal_folds(table.keys, spec.folds, spec.seed)
    if len(np.unique(fold_N)) < spec.folds:
        raise LabError(
            f"{table.name}: {len(set(table.keys))} different items do not fill {spec.folds} folds; lower `folds`, or "
            "measure more items"
        )
    return fold_N


def outside(table: ItemTable, items: np.ndarray) -> np.ndarray:
    """Which items [N] are none of `items`, given by index, nor look the same as one; twins may be in two groups."""
    number_N = number_keys(table.keys)
    return ~np.isin(number_N, number_N[items])


def trial_parts(table: ItemTable, index: np.ndarray, spec: QuestionRouterSettings) -> np.ndarray:
    """The trial [N] that does not learn from each of the training items `index`, counted from 0.

    Whole groups are held back where whole groups are to be scored later, as far as there are two of them.
    """
    group_N = table.group_N[index]
    whole_groups = spec.folds == "groups" and len(np.unique(group_N)) > 1
    keys = [str(group) for group in group_N] if whole_groups else [table.keys[i] for i in index]
    part_N = deal_folds(keys, spec.trials, spec.seed + 1)
    if part_N.max() == part_N.min():  # all items look the same
        part_N = np.arange(len(index)) % 2
    return np.unique(part_N, return_inverse=True)[1]
