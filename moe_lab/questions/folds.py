"""Items that look the same stay together: in folds, and when they are drawn for intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def number_keys(keys: Sequence[str]) -> np.ndarray:
    """A number for each item [N], equal for equal keys, counted from 0 in order of first appearance."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(key, len(number)) for key in keys], np.int64)


def deal_folds(keys: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each item [N]: of nearly equal size, at random, items of equal key in the same one."""
    kind_N = number_keys(keys)
    kinds = int(kind_N.max(initial=-1)) + 1
    return (np.random.default_rng(seed).permutation(kinds) % folds)[kind_N]
