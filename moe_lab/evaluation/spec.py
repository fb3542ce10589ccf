"""What people write to have a composition measured. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from moe_lab.config.spec import Spec
from moe_lab.data.spec import DataRef


class MeasuredText(Spec):
    """Which text a composition is measured on; always its validation split.

    Attributes:
        domains: left out, the text that the composed modules were trained on.
        rows: of `seq_len` tokens per domain.
    """

    domains: tuple[DataRef, ...] = ()
    rows: PositiveInt = 64
    seq_len: PositiveInt = 256


class OutcomeSettings(MeasuredText):
    """Text on which every candidate is measured; items with fewer than `shortest_bytes` are no items of a table."""

    shortest_bytes: PositiveInt = 16


class EvaluationSpec(Spec):
    """Evaluates a composition: matrix, curve against baselines, report.

    Attributes:
        composition: a composition config or lockfile.
        domains: text to evaluate on; its test split.
        rows: test rows per domain.
        decision_rows: validation rows per domain from which the group table is made.
        prices: what the router is charged, in nats per token for the dearest candidate.
        routers: other published routers for the same trunk and modules, drawn beside the composition's own.
        without: modules to opt out.
        resamples: bootstrap draws.
    """

    kind: Literal["evaluation"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    composition: str
    domains: tuple[DataRef, ...] = Field(min_length=1)
    rows: PositiveInt = 48
    decision_rows: PositiveInt = 32
    seq_len: PositiveInt = 256
    batch_size: PositiveInt = 16
    prices: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 0.01, 0.03, 0.1, 0.3)
    routers: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    sample_tokens: NonNegativeInt = 400
    resamples: PositiveInt = 1000
    seed: NonNegativeInt = 0
