"""Whether an imported trunk computes what it computed where it came from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_lab.compose.parts import LoadedTrunk
from moe_lab.errors import LabError, Refused
from moe_lab.jobs.workspace import Workspace
from moe_lab.trunks.against import reference_logits

PROBE = '''The lighthouse keeper climbed the stairs every evening, and every evening the sea was there. When the lamp
was lit, ships far out could see it, and their crews knew how near the rocks were.

def mean(values: list[float]) -> float:
    """The arithmetic mean of a list that is not empty."""
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)
'''
LARGEST_DIFFERENCE = 1e-4
"""Of the largest logit, in float32; rounding in another order stays an order of magnitude below it."""
LARGEST_DIVERGENCE = 1e-6


@dataclasses.dataclass(frozen=True)
class ProbeScore:
    """What a trunk needs for the probe text."""

    ref: str
    bits_per_byte: float
    bytes: int


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Two sets of logits of the same tokens.

    Attributes:
        difference: the largest, relative to the largest logit.
        divergence: KL of ours from theirs, the largest of any token, in nats.
        same_best: at how many positions both find the same token likeliest.
    """

    positions: int
    difference: float
    divergence: float
    same_best: int

    def require(self) -> None:
        """Refuses two that are not the same model up to rounding."""
        if not (self.difference <= LARGEST_DIFFERENCE and self.divergence <= LARGEST_DIVERGENCE):
            raise Refused(
                f"the logits are not the same: at most {LARGEST_DIFFERENCE:.0e} of the largest logit and "
                f"{LARGEST_DIVERGENCE:.0e} nats are rounding. Check that both are the same weights; if they are, "
                "do not use this trunk"
            )


def trunk_logits(trunk: LoadedTrunk, tokens_T: np.ndarray) -> np.ndarray:
    """Float32[T, V] of one document."""
    tokens_BS = jnp.asarray(tokens_T, jnp.int32)[None]
    model = nnx.merge(trunk.graph, trunk.state)
    ones_BS, positions_BS = jnp.ones_like(tokens_BS), jnp.arange(tokens_BS.shape[1])[None]
    return np.asarray(nnx.jit(lambda model: model(tokens_BS, ones_BS, positions_BS))(model)[0])


def compare_logits(ours_TV: np.ndarray, theirs_TV: np.ndarray) -> Agreement:
    """Compares logits of the same tokens, theirs as the reference."""
    ours_TV, theirs_TV = ours_TV.astype(np.float64), theirs_TV.astype(np.float64)
    difference = np.abs(ours_TV - theirs_TV).max() / np.abs(theirs_TV).max()
    log_ours_TV, log_theirs_TV = _log_softmax(ours_TV), _log_softmax(theirs_TV)
    divergence_T = (np.exp(log_theirs_TV) * (log_theirs_TV - log_ours_TV)).sum(-1)
    same = int((ours_TV.argmax(-1) == theirs_TV.argmax(-1)).sum())
    return Agreement(len(ours_TV), float(difference), float(divergence_T.max()), same)


def check_trunk(workspace: Workspace, ref: str) -> ProbeScore:
    """Reads a trunk whole and runs it over the probe text."""
    trunk = workspace.trunk(workspace.pin_trunk(ref))
    ids, sizes = trunk.tokenizer.encode(PROBE)
    logits_TV = trunk_logits(trunk, np.concatenate([[trunk.tokenizer.start_id], ids[:-1]]))
    if not np.isfinite(logits_TV).all():
        raise LabError(f"{ref}: its logits are not finite; import it again from another copy")
    nats = -_log_softmax(logits_TV.astype(np.float64))[np.arange(len(ids)), ids].sum()
    return ProbeScore(trunk.part.ref, float(nats / np.log(2) / sizes.sum()), int(sizes.sum()))


def check_against(workspace: Workspace, ref: str, source: Path, positions: int) -> Agreement:
    """Compares a trunk with transformers' own reading of the model it came from, in float32."""
    trunk = workspace.trunk(workspace.pin_trunk(ref))
    ids, _ = trunk.tokenizer.encode(PROBE)
    tokens_T = np.resize(ids, positions)
    return compare_logits(trunk_logits(trunk, tokens_T), reference_logits(source, tokens_T))


def _log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    shifted = logits_TV - logits_TV.max(-1, keepdims=True)
    log_softmax: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_softmax
