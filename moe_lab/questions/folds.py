"""Folds in which duplicates stay together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def deal_folds(keys: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each item [N]: of nearly equal size, at random, items of equal key in the same one."""
    number: dict[str, int] = {}
    kind_N = np.array([number.setdefault(key, len(number)) for key in keys], np.int64)
    fold_of_kind = np.random.default_rng(seed).permutation(len(number)) % folds
    return fold_of_kind[kind_N]
