"""Running a composed model over held-out text, and what it did there, token by token.

Legend: N rows, S positions of a row, T counted tokens, K choices of a token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np

from moe_lab.compose.model import UNCAPPED, ComposedModel
from moe_lab.data import Batch
from moe_lab.evaluation.curves import TokenOutcomes
from moe_lab.parallel.mesh import to_host
from moe_lab.routing.outcomes import OutcomeTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The text of an evaluation: the same rows of every domain, in batches of one shape."""

    domains: tuple[str, ...]
    batches: tuple[Batch, ...]

    @cached_property
    def rows(self) -> Batch:
        """All batches as one."""
        return Batch(*(np.concatenate(arrays) for arrays in zip(*self.batches, strict=True)))

    @cached_property
    def counted_NS(self) -> np.ndarray:
        """Positions whose loss counts."""
        return self.rows.loss_mask > 0

    @cached_property
    def unit_T(self) -> np.ndarray:
        """The row of each counted token; rows without any are passed over."""
        row_T = np.nonzero(self.counted_NS)[0]
        return np.unique(row_T, return_inverse=True)[1]

    @cached_property
    def domain_T(self) -> np.ndarray:
        """The domain of each counted token."""
        return np.broadcast_to(self.rows.domain.reshape(-1, 1), self.counted_NS.shape)[self.counted_NS]

    @cached_property
    def bytes_T(self) -> np.ndarray:
        """Bytes that each counted token stands for."""
        return self.rows.target_bytes[self.counted_NS]

    def token_outcomes(self, table: OutcomeTable) -> TokenOutcomes:
        """A table measured on these rows, flat and in bits."""
        return TokenOutcomes(
            loss_TC=table.loss_NSC[self.counted_NS].astype(np.float64) / math.log(2),
            cost_C=table.space.cost_C.astype(np.float64),
            unit_T=self.unit_T,
            group_T=self.domain_T,
            bytes_T=self.bytes_T,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """What one system did with the held-out text."""

    bits_T: np.ndarray
    cost_T: np.ndarray  # multiply-adds in the routed layers, the router's own included
    hit_NS: np.ndarray
    expert_NSK: np.ndarray  # index into the router's modules
    width_NSK: np.ndarray  # hidden units asked for


PassSystem = Literal["composed", "left_out", "routed", "told", "uniform_width", "other", "random"]


@dataclasses.dataclass(frozen=True)
class PlannedPass:
    """One run of a model over the text that is still to come: what it shows, and how it is run."""

    system: PassSystem
    label: str
    model: ComposedModel
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class MadePasses:
    """Passes by what they show, in the order in which they were planned."""

    def __init__(self) -> None:
        self._passes: dict[PassSystem, dict[str, list[Pass]]] = {}

    def add(self, planned: PlannedPass, made: Pass) -> None:
        self._passes.setdefault(planned.system, {}).setdefault(planned.label, []).append(made)

    def of(self, system: PassSystem) -> list[Pass]:
        """All passes of a system."""
        return [made for passes in self.by_label(system).values() for made in passes]

    def by_label(self, system: PassSystem) -> dict[str, list[Pass]]:
        """The passes of a system by what they are called: by price in a sweep."""
        return self._passes.get(system, {})


def enter_all(model: ComposedModel, heldout: HeldOut) -> list[jax.Array]:
    """The trunk's state in front of the routed layers, batch by batch: the same for all candidates and routers."""
    arrays = model.arrays()
    return [model.enter(arrays, batch) for batch in heldout.batches]


def run_pass(
    model: ComposedModel,
    heldout: HeldOut,
    hidden: Sequence[jax.Array],
    *,
    price: float | None = None,
    without: Sequence[str] = (),
    width_cap: int = UNCAPPED,
    table: OutcomeTable | None = None,
    told: bool = False,
) -> Pass:
    """Runs the composed model over all batches.

    Args:
        model: what to run.
        heldout: the text.
        hidden: from `enter_all`, shared by all systems with the same trunk.
        price: overrides the composition's.
        without: modules to opt out.
        width_cap: see `ComposedModel.run`.
        table: measured outcomes, for routers that look them up.
        told: whether the router is told the domain of every row.
    """
    arrays, available = model.arrays(), model.available(without)
    decisions, row = [], 0
    for batch, hidden_BSD in zip(heldout.batches, hidden, strict=True):
        rows = slice(row, row := row + len(batch.tokens))
        outcomes = table.loss_NSC[rows] if table is not None and model.router.needs_outcomes else None
        decisions.append(
            model.run(
                arrays,
                batch,
                hidden_BSD,
                available_E=available,
                price=price,
                width_cap=width_cap,
                outcomes_BSC=outcomes,
                hint_BE=model.hint([heldout.domains[index] for index in batch.domain]) if told else None,
            )
        )
    by_field = zip(*(to_host(decision.by_token()) for decision in decisions), strict=True)
    loss, hit, expert, width, blocks = map(np.concatenate, by_field)
    counted = heldout.counted_NS
    return Pass(
        bits_T=loss[counted].astype(np.float64) / math.log(2),
        cost_T=blocks[counted].astype(np.float64) * model.multiply_adds_per_block + model.router.multiply_adds,
        hit_NS=hit,
        expert_NSK=expert,
        width_NSK=width * model.trunk.spec.block,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerItems:
    """Where the whole answers of exercises lie: answers cut by a row's ends are left out."""

    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    level: np.ndarray

    @staticmethod
    def of(rows: Batch) -> AnswerItems:
        """Runs of the answer mask that lie inside their row."""
        mask = np.pad(rows.answer_mask > 0, ((0, 0), (1, 1))).astype(np.int8)
        step = np.diff(mask, axis=1)
        row, start = np.nonzero(step == 1)
        end = np.nonzero(step == -1)[1]
        whole = (start > 0) & (end < rows.tokens.shape[1])
        row, start, end = row[whole], start[whole], end[whole]
        return AnswerItems(row=row, start=start, end=end, level=rows.level[row, start])

    def right(self, hit_NS: np.ndarray) -> np.ndarray:
        """Whether every token of each answer is what greedy decoding gives: exact match, by induction."""
        hits = np.pad(np.cumsum(hit_NS, axis=1), ((0, 0), (1, 0)))
        return hits[self.row, self.end] - hits[self.row, self.start] == self.end - self.start
