"""Claims: the held-out figures that an artifact is published with, in a form that anyone can measure again."""

from __future__ import annotations

from collections.abc import Sequence

from moe_lab.artifacts.artifact import Claim
from moe_lab.compose.parts import LoadedTrunk
from moe_lab.data import Batch, Corpus, eval_batches
from moe_lab.data.documents import Split
from moe_lab.experts.interface import blocks_of
from moe_lab.experts.kind import ExpertKind
from moe_lab.experts.weights import ExpertWeights
from moe_lab.jobs.measure import BatchLosses, bits_per_byte, module_losses, trunk_losses

HELDOUT: Split = "test"
BATCH_ROWS = 8


def heldout_batches(corpus: Corpus, rows: int, seq_len: int) -> list[Batch]:
    """The test rows that claims are measured on."""
    return eval_batches(corpus, HELDOUT, min(BATCH_ROWS, rows), seq_len, rows)


def claim(corpus: Corpus, losses: BatchLosses, *, rows: int, seq_len: int, width: int) -> Claim:
    """One held-out figure; width 0 is the bare trunk. The value is text because manifests hold no floats."""
    value = bits_per_byte(losses, heldout_batches(corpus, rows, seq_len))
    return {
        "metric": "bits_per_byte",
        "domain": corpus.name,
        "data": corpus.digest,
        "split": HELDOUT,
        "rows": rows,
        "seq_len": seq_len,
        "width": width,
        "value": f"{value:.6f}",
    }


def module_claims(
    trunk: LoadedTrunk,
    weights: ExpertWeights,
    kind: ExpertKind,
    ladder: Sequence[int],
    corpus: Corpus,
    rows: int,
    seq_len: int,
) -> list[Claim]:
    """What the trunk alone and the module at every width lose on its own held-out text."""
    losses = {0: trunk_losses(trunk.graph, trunk.state)} | {
        width: module_losses(trunk, weights, kind, blocks_of(width, trunk.spec.block)) for width in ladder
    }
    return [claim(corpus, run, rows=rows, seq_len=seq_len, width=width) for width, run in losses.items()]


def values_by_width(claims: Sequence[Claim]) -> dict[int, float]:
    """Bits per byte by width."""
    return {entry["width"]: float(entry["value"]) for entry in claims}
