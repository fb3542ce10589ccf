"""What a router chooses from: the bare trunk, and every module at every rung of its ladder.

Shape letters: E modules, R rungs of the longest ladder, Q the bare trunk and then the rungs, C candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import numpy as np

TRUNK_CANDIDATE = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateSpace:
    """Candidate 0 is the bare trunk at no cost; then come the modules in order, each from narrow to wide."""

    modules: tuple[str, ...]  # owner/name
    widths: tuple[tuple[int, ...], ...]  # hidden units per rung
    blocks: tuple[tuple[int, ...], ...]  # the same in blocks
    costs: tuple[tuple[int, ...], ...]  # multiply-adds per token

    def __len__(self) -> int:
        return 1 + sum(map(len, self.widths))

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(module, rung) of every candidate after the trunk."""
        return tuple((e, r) for e, ladder in enumerate(self.widths) for r in range(len(ladder)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """`trunk`, then `owner/name:width`."""
        return ("trunk", *(f"{self.modules[e]}:{self.widths[e][r]}" for e, r in self.pairs))

    @cached_property
    def cost_C(self) -> np.ndarray:
        """Multiply-adds per token, int64."""
        return np.array([0, *(self.costs[e][r] for e, r in self.pairs)], np.int64)

    @cached_property
    def relative_cost_C(self) -> np.ndarray:
        """Cost in units of the dearest candidate, so that a price is the loss one would pay to run that one."""
        return (self.cost_C / max(1, self.cost_C.max())).astype(np.float32)

    @cached_property
    def candidate_ER(self) -> np.ndarray:
        """Candidate index of each (module, rung); ladders shorter than the longest repeat their last rung."""
        rungs = max(map(len, self.widths), default=1)
        index = {pair: c for c, pair in enumerate(self.pairs, start=1)}
        return np.array(
            [[index[e, min(r, len(ladder) - 1)] for r in range(rungs)] for e, ladder in enumerate(self.widths)],
            np.int32,
        )

    @cached_property
    def relative_cost_EQ(self) -> np.ndarray:
        """Of the bare trunk and then of each rung, as `candidate_ER`: float32, in units of the dearest candidate."""
        return np.pad(self.relative_cost_C[self.candidate_ER], ((0, 0), (1, 0)))

    @cached_property
    def valid_ER(self) -> np.ndarray:
        """False where `candidate_ER` only repeats."""
        rungs = self.candidate_ER.shape[1]
        return np.array([[r < len(ladder) for r in range(rungs)] for ladder in self.widths], bool)

    @cached_property
    def widest_E(self) -> np.ndarray:
        """Candidate index of each module at full width."""
        return self.candidate_ER[:, -1]

    @cached_property
    def module_C(self) -> np.ndarray:
        """Module of each candidate; 0 for the trunk, whose width of 0 makes it irrelevant."""
        return np.array([0, *(e for e, _ in self.pairs)], np.int32)

    @cached_property
    def blocks_C(self) -> np.ndarray:
        """Blocks that each candidate runs per layer."""
        return np.array([0, *(self.blocks[e][r] for e, r in self.pairs)], np.int32)

    def kept(self, without: Collection[str]) -> np.ndarray:
        """Indices of the candidates that do not belong to some modules."""
        return np.array([0, *(c for c, (e, _) in enumerate(self.pairs, 1) if self.modules[e] not in without)])

    def without(self, names: Collection[str]) -> CandidateSpace:
        """The space as if some modules had never been composed."""
        kept = [e for e, module in enumerate(self.modules) if module not in names]
        fields = {field.name: tuple(getattr(self, field.name)[e] for e in kept) for field in dataclasses.fields(self)}
        return CandidateSpace(**fields)

    def to_json(self) -> dict[str, Any]:
        """For manifests and headers."""
        return {key: _listed(value) for key, value in dataclasses.asdict(self).items()}

    @staticmethod
    def from_json(section: Mapping[str, Any]) -> CandidateSpace:
        """The inverse of `to_json`."""
        fields = {key: tuple(map(tuple, section[key])) for key in ("widths", "blocks", "costs")}
        return CandidateSpace(modules=tuple(section["modules"]), **fields)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
