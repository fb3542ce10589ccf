"""The router of a composition beside everything that it has to be compared with, on one text.

Legend: T tokens, C candidates, U units (document rows). Loss is in bits, cost in multiply-adds per token.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_lab.compose.model import ComposedModel
from moe_lab.evaluation.curves import (
    CostAndBits,
    TokenOutcomes,
    bits_at_cost,
    choice_point,
    curve_point,
    price_curve,
    zero_curve,
)
from moe_lab.evaluation.passes import Pass
from moe_lab.evaluation.results import Budget, Curve, CurvePoint, Role
from moe_lab.metrics.choices import Choice, fixed, group_table, oracle
from moe_lab.metrics.hull import zero_router

if TYPE_CHECKING:
    from moe_lab.evaluation.evaluate import Evaluation

SHARES = (0.1, 0.25, 0.5)
"""Budgets, as shares of what the dearest candidate costs."""


class Comparison:
    """Runs every router that an evaluation draws; each pass is run once."""

    def __init__(self, evaluation: Evaluation, outcomes: TokenOutcomes):
        self.evaluation, self.outcomes = evaluation, outcomes
        settings = evaluation.settings
        self.draws: dict[str, Any] = {"resamples": settings.resamples, "seed": settings.seed}
        self.space, self.decision = evaluation.available.space, evaluation.decision
        self.zero = zero_router(self.decision.fixed_points())
        # A price counts nats for the dearest candidate that the router knows; the tables count bits per multiply-add.
        self.per_multiply_add = 1 / math.log(2) / max(1.0, float(evaluation.model.space.cost_C.max()))

    def curves(self) -> list[Curve]:
        """Learned routers first, then the baselines, then every candidate alone."""
        outcomes, made, prices = self.outcomes, self.evaluation, self.evaluation.settings.prices
        zero: dict[str, Any] = {"zero": self.zero, **self.draws}
        passes = {"routed": self._points(self._own), "told": self._points(self._told)}
        table = price_curve(outcomes, prices, self._table_choice, **passes, **zero)
        uniform = [self._passed(made.model, price=0.0, width_cap=blocks) for blocks in made.uniform_blocks()]
        alone = enumerate(self.space.names)
        told: list[tuple[str, Role, list[CurvePoint]]] = []
        if self._told:
            told.append((f"{made.label}, told the domain", "told", self._curve(self._told)))
        named: list[tuple[str, Role, list[CurvePoint]]] = [
            (made.label, "learned", self._curve(self._own)),
            *((label, "learned", self._curve(self._sweep(model))) for label, model in made.others.items()),
            *told,
            ("zero router", "zero_router", zero_curve(outcomes, self.zero, **self.draws)),
            ("group table", "group_table", table),
            ("uniform width", "uniform_width", [self._point(passed, None) for passed in uniform]),
            ("random", "random", [self._point(self._passed(made.random), None)]),
            ("oracle", "oracle", price_curve(outcomes, prices, self._oracle_choice, **zero)),
            *((name, "fixed", [choice_point(outcomes, fixed(c, self._tokens), **self.draws)]) for c, name in alone),
        ]
        return [Curve(label=label, role=role, points=points) for label, role, points in named]

    def budgets(self) -> list[Budget]:
        """The composition's own router at a few shares of the dearest candidate's cost."""
        # The bare trunk runs no router, and so costs nothing at all.
        points = [(0.0, self.outcomes.bits_UC[:, 0]), *self._points(self._own)]
        most = max(cost for cost, _ in points)
        budgets = []
        for share in SHARES:
            cost = min(share * float(self.space.cost_C.max()), most)
            bits_U = bits_at_cost(points, cost)
            assert bits_U is not None, "the bare trunk is cheaper than any budget"
            budgets.append(Budget(share=share, point=self._measured(bits_U, cost, None)))
        return budgets

    @property
    def _tokens(self) -> int:
        return len(self.outcomes.unit_T)

    @cached_property
    def _own(self) -> list[Pass]:
        return self._sweep(self.evaluation.model)

    @cached_property
    def _told(self) -> list[Pass]:
        """With what the group table knows, if the router can be told."""
        return self._sweep(self.evaluation.model, told=True) if self.evaluation.can_be_told else []

    def _sweep(self, model: ComposedModel, **options: Any) -> list[Pass]:
        return [self._passed(model, price=price, **options) for price in self.evaluation.settings.prices]

    def _passed(self, model: ComposedModel, **options: Any) -> Pass:
        return self.evaluation.run(model, without=self.evaluation.settings.without, **options)

    def _points(self, passes: list[Pass]) -> list[CostAndBits]:
        return [(float(made.cost_T.mean()), self.outcomes.per_unit(made.bits_T)) for made in passes]

    def _curve(self, passes: list[Pass]) -> list[CurvePoint]:
        prices = self.evaluation.settings.prices
        return [self._point(made, price) for made, price in zip(passes, prices, strict=True)]

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
            num_groups=len(self.evaluation.heldout.domains),
        )
        return table[self.outcomes.group_T]

    def _oracle_choice(self, price: float) -> Choice:
        return oracle(self.outcomes.loss_TC, self.outcomes.cost_C, price * self.per_multiply_add)
