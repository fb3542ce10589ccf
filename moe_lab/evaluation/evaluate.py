"""One evaluation: the matrix, the curve beside its baselines, exact match, routing shares and samples.

Legend: N rows, S positions of a row, T counted tokens, C candidates, U bootstrap units (rows).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np

from moe_lab.compose.model import ComposedModel
from moe_lab.data.tokenizers import pieces
from moe_lab.evaluation.comparison import Comparison
from moe_lab.evaluation.curves import TokenOutcomes
from moe_lab.evaluation.passes import (
    AnswerItems,
    HeldOut,
    MadePasses,
    Pass,
    PassSystem,
    PlannedPass,
    enter_all,
    run_pass,
)
from moe_lab.evaluation.results import (
    Acceptance,
    BestSingle,
    CandidateEntry,
    DomainEntry,
    ExactMatch,
    MatrixCell,
    RoutingShare,
    Sample,
)
from moe_lab.metrics.bootstrap import Interval, ratio_interval
from moe_lab.routing.outcomes import OutcomeTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How an evaluation is measured."""

    prices: tuple[float, ...]
    without: tuple[str, ...]
    sample_tokens: int
    resamples: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A composed model, other routers to draw beside its own, and what all candidates lose on the same text."""

    model: ComposedModel
    label: str
    others: Mapping[str, ComposedModel]
    random: ComposedModel
    heldout: HeldOut
    table: OutcomeTable
    hit_NSC: np.ndarray
    decision: TokenOutcomes  # validation text, from which baselines are decided
    settings: Settings
    count_pass: Callable[[], None] = lambda: None

    @cached_property
    def planned(self) -> tuple[PlannedPass, ...]:
        """Every run of a model over the text that is measured; `count_pass` is called after each."""
        without, prices = self.settings.without, self.settings.prices

        def sweep(system: PassSystem, label: str, model: ComposedModel, **options: Any) -> list[PlannedPass]:
            return [PlannedPass(system, label, model, {"price": price, **options}) for price in prices]

        return (
            PlannedPass("composed", self.label, self.model),
            *(
                PlannedPass("left_out", module.name, self.model, {"without": (*without, module.name)})
                for module in self.model.modules
                if module.name not in without
            ),
            *sweep("routed", self.label, self.model),
            *(sweep("told", self.label, self.model, told=True) if self.can_be_told else ()),
            *(
                PlannedPass("uniform_width", str(blocks), self.model, {"price": 0.0, "width_cap": blocks})
                for blocks in self.uniform_blocks()
            ),
            *(planned for label, model in self.others.items() for planned in sweep("other", label, model)),
            PlannedPass("random", "random", self.random),
        )

    @property
    def can_be_told(self) -> bool:
        """Whether the router has met one of these domains, so that being told is of use to it."""
        return any(domain in self.model.homes for domain in self.heldout.domains)

    @cached_property
    def hidden(self) -> list[jax.Array]:
        """The work in front of the routed layers, done once."""
        return enter_all(self.model, self.heldout)

    @cached_property
    def available(self) -> OutcomeTable:
        """The table of the candidates that are not opted out: what every baseline may choose from."""
        return self.table.without(self.settings.without)

    def measure(self) -> dict[str, list]:
        """Everything that a `Results` holds about quality and cost, by field name."""
        outcomes = self.heldout.token_outcomes(self.available)
        made = MadePasses()
        for planned in self.planned:
            made.add(planned, self._run(planned))
        (composed,) = made.of("composed")
        systems = self._systems(outcomes, composed, made.by_label("left_out"))
        compared = Comparison(
            passes=made,
            label=self.label,
            prices=self.settings.prices,
            outcomes=outcomes,
            decision=self.decision,
            names=tuple(self.available.space.names),
            num_domains=len(self.heldout.domains),
            dearest_cost=float(self.model.space.cost_C.max()),
            draws={"resamples": self.settings.resamples, "seed": self.settings.seed},
        )
        return {
            "domains": self._domains(),
            "candidates": self._candidates(),
            "matrix": [cell for system in systems for cell in self._cells(system)],
            "acceptance": self._acceptance(outcomes, composed),
            "exact_match": [match for system in systems for match in self._exact_match(system)],
            "curves": compared.curves(),
            "budgets": compared.budgets(),
            "routing": self._routing(composed),
            "samples": self._samples(composed),
        }

    def uniform_blocks(self) -> list[int]:
        """At most four widths, evenly among those of the ladders, the narrowest and the widest included."""
        widths = sorted(set(self.available.space.blocks_C[1:].tolist()))
        places = np.linspace(0, len(widths) - 1, min(4, len(widths)))
        return [widths[place] for place in places.round().astype(int).tolist()]

    def _run(self, planned: PlannedPass) -> Pass:
        options = {"without": self.settings.without, **planned.options}
        made = run_pass(planned.model, self.heldout, self.hidden, table=self.table, **options)
        self.count_pass()
        return made

    def _domains(self) -> list[DomainEntry]:
        heldout = self.heldout
        return [
            DomainEntry(
                name=name,
                rows=len(np.unique(heldout.unit_T[heldout.domain_T == index])),
                bytes=int(heldout.bytes_T[heldout.domain_T == index].sum()),
            )
            for index, name in enumerate(heldout.domains)
        ]

    def _candidates(self) -> list[CandidateEntry]:
        space = self.available.space
        trunk = CandidateEntry(name="trunk", module=None, width=0, cost=0.0)
        return [
            trunk,
            *(
                CandidateEntry(
                    name=space.names[c],
                    module=space.modules[e],
                    width=space.widths[e][r],
                    cost=float(space.cost_C[c]),
                )
                for c, (e, r) in enumerate(space.pairs, start=1)
            ),
        ]

    def _systems(self, outcomes: TokenOutcomes, composed: Pass, left_out: Mapping[str, list[Pass]]) -> list[_System]:
        kept = self.table.space.kept(self.settings.without)
        alone = [
            _System(
                system="trunk" if candidate.module is None else "alone",
                module=candidate.module,
                width=candidate.width or None,
                bits_T=outcomes.loss_TC[:, c],
                cost_T=np.full(len(outcomes.unit_T), candidate.cost),
                hit_NS=self.hit_NSC[..., kept[c]],
            )
            for c, candidate in enumerate(self._candidates())
        ]
        return [
            *alone,
            _System.of_pass("composed", None, composed),
            *(_System.of_pass("left_out", name, made) for name, (made,) in left_out.items()),
        ]

    def _cells(self, system: _System) -> list[MatrixCell]:
        return [
            MatrixCell(
                system=system.system,
                module=system.module,
                width=system.width,
                domain=name,
                bits_per_byte=self._interval(system.bits_T, self.heldout.domain_T == index),
                cost=float(system.cost_T[self.heldout.domain_T == index].mean()),
            )
            for index, name in enumerate(self.heldout.domains)
        ]

    def _interval(self, bits_T: np.ndarray, where_T: np.ndarray) -> Interval:
        units, unit_T = np.unique(self.heldout.unit_T[where_T], return_inverse=True)
        bits_U = np.bincount(unit_T, bits_T[where_T], minlength=len(units))
        bytes_U = np.bincount(unit_T, self.heldout.bytes_T[where_T], minlength=len(units))
        return ratio_interval(bits_U, bytes_U, resamples=self.settings.resamples, seed=self.settings.seed)

    def _acceptance(self, outcomes: TokenOutcomes, composed: Pass) -> list[Acceptance]:
        entries = []
        for index, name in enumerate(self.heldout.domains):
            where_T = self.heldout.domain_T == index
            total_bytes = self.heldout.bytes_T[where_T].sum()
            alone_C = outcomes.loss_TC[where_T].sum(axis=0) / total_bytes
            best = int(np.argmin(alone_C))
            own = float(composed.bits_T[where_T].sum() / total_bytes)
            entries.append(
                Acceptance(
                    domain=name,
                    trunk=float(alone_C[0]),
                    best_single=BestSingle(name=self.available.space.names[best], bits_per_byte=float(alone_C[best])),
                    composed=own,
                    no_worse_than_trunk=bool(own <= alone_C[0]),
                    gap_to_best_percent=float(100 * (own / alone_C[best] - 1)),
                )
            )
        return entries

    def _exact_match(self, system: _System) -> list[ExactMatch]:
        items = AnswerItems.of(self.heldout.rows)
        right, settings = items.right(system.hit_NS), self.settings
        matches = []
        for level in sorted({int(level) for level in items.level}):
            at = items.level == level
            row_of = np.unique(items.row[at], return_inverse=True)[1]  # answers of a row share their context
            share = ratio_interval(
                np.bincount(row_of, right[at]), np.bincount(row_of), resamples=settings.resamples, seed=settings.seed
            )
            matches.append(
                ExactMatch(
                    level=level,
                    system=system.system,
                    module=system.module,
                    width=system.width,
                    items=int(at.sum()),
                    mean=share.mean,
                    low=share.low,
                    high=share.high,
                )
            )
        return matches

    def _routing(self, composed: Pass) -> list[RoutingShare]:
        """Each token counts once, in equal parts for the modules that it runs."""
        counted, shares = self.heldout.counted_NS, []
        expert_TK, width_TK = composed.expert_NSK[counted], composed.width_NSK[counted]
        # A token that runs nothing counts once for the bare trunk, through its first choice. Others share their one
        # count among the choices that run, so the shares of a domain add up to 1.
        runs_TK = width_TK > 0
        runs_TK[~runs_TK.any(axis=1), 0] = True
        part_TK = runs_TK / runs_TK.sum(axis=1, keepdims=True)
        for index, domain in enumerate(self.heldout.domains):
            here = runs_TK & (self.heldout.domain_T == index)[:, None]
            expert, width = np.where(width_TK > 0, expert_TK, -1)[here], width_TK[here]
            # Equal (module, width) pairs are one entry: `which` says for each choice which pair is its own.
            pairs, which = np.unique(np.stack([expert, width]), axis=1, return_inverse=True)
            parts = np.bincount(which.reshape(-1), part_TK[here]) / (self.heldout.domain_T == index).sum()
            for e, w, part in zip(*pairs.tolist(), parts.tolist(), strict=True):
                shares.append(
                    RoutingShare(domain=domain, module=self._module(e, w), width=self._own_width(e, w), share=part)
                )
        return shares

    def _module(self, expert: int, width: int) -> str | None:
        return self.model.space.modules[expert] if width else None

    def _own_width(self, expert: int, width: int) -> int:
        """Blocks may be part padding: a width beyond the module's own is its own."""
        return min(width, self.model.space.widths[expert][-1]) if width else 0

    def _samples(self, composed: Pass) -> list[Sample]:
        rows, samples = self.heldout.rows, []
        for index, domain in enumerate(self.heldout.domains):
            row = int(np.flatnonzero(rows.domain.reshape(-1) == index)[0])
            length = min(self.settings.sample_tokens, int((rows.segment_ids[row] > 0).sum()))
            if not length:
                continue
            experts = composed.expert_NSK[row, :length, 0].tolist()
            widths = composed.width_NSK[row, :length, 0].tolist()
            samples.append(
                Sample(
                    domain=domain,
                    pieces=pieces(self.model.trunk.tokenizer, rows.tokens[row, :length]),
                    module=[self._module(e, w) for e, w in zip(experts, widths, strict=True)],
                    width=[self._own_width(e, w) for e, w in zip(experts, widths, strict=True)],
                )
            )
        return samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class _System:
    """One row of the matrix, token by token."""

    system: Literal["trunk", "alone", "composed", "left_out"]
    module: str | None
    width: int | None
    bits_T: np.ndarray
    cost_T: np.ndarray
    hit_NS: np.ndarray

    @staticmethod
    def of_pass(system: Literal["composed", "left_out"], module: str | None, made: Pass) -> _System:
        return _System(
            system=system,
            module=module,
            width=None,
            bits_T=made.bits_T,
            cost_T=made.cost_T,
            hit_NS=made.hit_NS,
        )


def decision_outcomes(table: OutcomeTable) -> TokenOutcomes:
    """A validation table, flat and in bits, for the baselines that are decided beforehand."""
    mask = table.mask_NS
    row_T = np.nonzero(mask)[0]
    return TokenOutcomes(
        loss_TC=table.loss_NSC[mask].astype(np.float64) / math.log(2),
        cost_C=table.space.cost_C.astype(np.float64),
        unit_T=np.unique(row_T, return_inverse=True)[1],
        group_T=table.group_N[row_T],
        bytes_T=table.bytes_NS[mask],
    )
