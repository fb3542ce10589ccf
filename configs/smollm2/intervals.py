"""How much every candidate gains on each domain, in pairs: from the outcome table that the study measured.

    python configs/smollm2/intervals.py runs/outcomes-*/outcomes.parquet

Bits per byte less than the bare trunk's, with the 95% interval of 4000 resamples of the table's rows. They are of
the validation split: no module has learned from them.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from moe_lab import load_outcomes

RESAMPLES = 4000


def main(path: str) -> None:
    table = load_outcomes(path)
    draw = np.random.default_rng(0)
    for group, domain in enumerate(table.groups):
        rows = np.flatnonzero(table.group_N == group)
        mask_NS = table.mask_NS[rows]
        bytes_N = (table.bytes_NS[rows] * mask_NS).sum(1)
        bits_NC = (table.loss_NSC[rows] * mask_NS[..., None]).sum(1) / math.log(2)
        resampled = draw.integers(0, len(rows), (RESAMPLES, len(rows)))
        print(f"{domain}: the bare trunk needs {bits_NC[:, 0].sum() / bytes_N.sum():.3f} bits per byte")
        for candidate, name in enumerate(table.space.names[1:], start=1):
            more_N = bits_NC[:, candidate] - bits_NC[:, 0]
            low, high = np.percentile(more_N[resampled].sum(1) / bytes_N[resampled].sum(1), [2.5, 97.5])
            print(f"  {name:24} {more_N.sum() / bytes_N.sum():+.3f}  ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python configs/smollm2/intervals.py OUTCOMES.parquet")
    main(sys.argv[1])
