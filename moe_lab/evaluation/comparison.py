"""The router of a composition beside everything that it has to be compared with, on one text.

Legend: T tokens, C candidates, U units (document rows). Loss is in bits, cost in multiply-adds per token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from moe_lab.evaluation.curves import (
    CostAndBits,
    TokenOutcomes,
    bits_at_cost,
    choice_point,
    curve_point,
    price_curve,
    zero_curve,
)
from moe_lab.evaluation.passes import MadePasses, Pass
from moe_lab.evaluation.results import Budget, Curve, CurvePoint, Role
from moe_lab.metrics.choices import Choice, fixed, group_table, oracle
from moe_lab.metrics.hull import ZeroRouter, zero_router

SHARES = (0.1, 0.25, 0.5)
"""Budgets, as shares of what the dearest candidate costs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every router that an evaluation draws, from passes that were made.

    Attributes:
        passes: sweeps over the prices are in the order of `prices`.
        label: the composition's own router.
        prices: in nats per token for the dearest candidate.
        outcomes: what every candidate loses on the text of the passes.
        decision: the same on validation text, from which baselines are decided.
        names: of the candidates.
        num_domains: how many domains the text has.
        dearest_cost: of all candidates that the router knows.
        draws: arguments of every bootstrap.
    """

    passes: MadePasses
    label: str
    prices: tuple[float, ...]
    outcomes: TokenOutcomes
    decision: TokenOutcomes
    names: tuple[str, ...]
    num_domains: int
    dearest_cost: float
    draws: Mapping[str, Any]

    @cached_property
    def zero(self) -> ZeroRouter:
        return zero_router(self.decision.fixed_points())

    @property
    def per_multiply_add(self) -> float:
        """A price counts nats for the dearest candidate; the tables count bits per multiply-add."""
        return 1 / math.log(2) / max(1.0, self.dearest_cost)

    def curves(self) -> list[Curve]:
        """Learned routers first, then the baselines, then every candidate alone."""
        outcomes, of, prices = self.outcomes, self.passes.of, self.prices
        zero: dict[str, Any] = {"zero": self.zero, **self.draws}
        passes = {"routed": self._points(of("routed")), "told": self._points(of("told"))}
        table = price_curve(outcomes, prices, self._table_choice, **passes, **zero)
        alone = enumerate(self.names)
        told: list[tuple[str, Role, list[CurvePoint]]] = []
        if of("told"):
            told.append((f"{self.label}, told the domain", "told", self._curve(of("told"))))
        named: list[tuple[str, Role, list[CurvePoint]]] = [
            (self.label, "learned", self._curve(of("routed"))),
            *((label, "learned", self._curve(sweep)) for label, sweep in self.passes.by_label("other").items()),
            *told,
            ("zero router", "zero_router", zero_curve(outcomes, self.zero, **self.draws)),
            ("group table", "group_table", table),
            ("uniform width", "uniform_width", [self._point(made, None) for made in of("uniform_width")]),
            ("random", "random", [self._point(made, None) for made in of("random")]),
            ("oracle", "oracle", price_curve(outcomes, prices, self._oracle_choice, **zero)),
            *((name, "fixed", [choice_point(outcomes, fixed(c, self._tokens), **self.draws)]) for c, name in alone),
        ]
        return [Curve(label=label, role=role, points=points) for label, role, points in named]

    def budgets(self) -> list[Budget]:
        """The composition's own router at a few shares of the dearest candidate's cost."""
        # The bare trunk runs no router, and so costs nothing at all.
        points = [(0.0, self.outcomes.bits_UC[:, 0]), *self._points(self.passes.of("routed"))]
        most = max(cost for cost, _ in points)
        budgets = []
        for share in SHARES:
            cost = min(share * float(self.outcomes.cost_C.max()), most)
            bits_U = bits_at_cost(points, cost)
            assert bits_U is not None, "the bare trunk is cheaper than any budget"
            budgets.append(Budget(share=share, point=self._measured(bits_U, cost, None)))
        return budgets

    @property
    def _tokens(self) -> int:
        return len(self.outcomes.unit_T)

    def _points(self, passes: list[Pass]) -> list[CostAndBits]:
        return [(float(made.cost_T.mean()), self.outcomes.per_unit(made.bits_T)) for made in passes]

    def _curve(self, passes: list[Pass]) -> list[CurvePoint]:
        return [self._point(made, price) for made, price in zip(passes, self.prices, strict=True)]

    def _point(self, made: Pass, price: float | None) -> CurvePoint:
        return self._measured(self.outcomes.per_unit(made.bits_T), float(made.cost_T.mean()), price)

    def _measured(self, bits_U: np.ndarray, cost: float, price: float | None) -> CurvePoint:
        outcomes = self.outcomes
        return curve_point(
            bits_U,
            outcomes.bytes_U,
            cost,
            price=price,
            zero_bits_U=outcomes.bits_UC @ self.zero.weights(cost),
            strata_U=outcomes.strata_U,
            **self.draws,
        )

    def _table_choice(self, price: float) -> Choice:
        decision = self.decision
        table = group_table(
            decision.loss_TC,
            decision.cost_C,
            decision.group_T,
            price * self.per_multiply_add,
            num_groups=self.num_domains,
        )
        return table[self.outcomes.group_T]

    def _oracle_choice(self, price: float) -> Choice:
        return oracle(self.outcomes.loss_TC, self.outcomes.cost_C, price * self.per_multiply_add)
