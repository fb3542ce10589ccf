"""The typed schema of `results.json` (format 1): everything that one evaluation found, ready to be drawn.

Units: quality is in bits per byte (lower is better), cost is the mean number of multiply-adds per token in
the routed layers, widths are hidden units.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from moe_lab.config.spec import Spec
from moe_lab.errors import Damaged, Refused, classify, did_you_mean
from moe_lab.files import write_text
from moe_lab.metrics.bootstrap import Interval

FORMAT = 1

System = Literal["trunk", "alone", "composed", "left_out"]
Role = Literal["learned", "told", "zero_router", "group_table", "uniform_width", "oracle", "fixed", "random"]
Count = Annotated[int, Field(ge=0)]
Cost = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Record(Spec):
    model_config = ConfigDict(allow_inf_nan=False)


class DomainEntry(_Record):
    """One held-out set; `rows` is the number of bootstrap units."""

    name: str
    rows: Count
    bytes: Count
    unit: Literal["bits_per_byte"] = "bits_per_byte"


class CandidateEntry(_Record):
    """A fixed choice a router can make: a module at a width, or the trunk alone (no module, width 0)."""

    name: str
    module: str | None
    width: Count
    cost: Cost

    @model_validator(mode="after")
    def _trunk_has_no_width(self) -> Self:
        if (self.module is None) != (self.width == 0):
            raise ValueError(f"candidate {self.name!r}: no module goes with width 0 and only with it")
        return self


class _Measured(_Record):
    """Which system was measured: `alone` and `left_out` name the module that is used alone or missing."""

    system: System
    module: str | None = None
    width: Count | None = None

    @model_validator(mode="after")
    def _names_its_module(self) -> Self:
        if (self.module is not None) != (self.system in ("alone", "left_out")):
            raise ValueError(f"system {self.system!r} with module {self.module!r}: alone and left_out name one")
        return self


class MatrixCell(_Measured):
    """Quality and cost of one system on one domain."""

    domain: str
    bits_per_byte: Interval
    cost: Cost


class ExactMatch(_Measured):
    """Share of exercises of one level whose whole answer is right."""

    level: int
    items: Count
    mean: Share
    low: Share
    high: Share

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        Interval(mean=self.mean, low=self.low, high=self.high)
        return self


class BestSingle(_Record):
    """The candidate with the least bits per byte on a domain, by its name in `candidates`."""

    name: str
    bits_per_byte: float


class Acceptance(_Record):
    """The composed model beside the trunk and the best single candidate of a domain, in bits per byte.

    `gap_to_best_percent` is `100 * (composed / best_single - 1)`: above zero where composing costs quality.
    """

    domain: str
    trunk: float
    best_single: BestSingle
    composed: float
    no_worse_than_trunk: bool
    gap_to_best_percent: float

    @model_validator(mode="after")
    def _gap_follows(self) -> Self:
        expected = 100 * (self.composed / self.best_single.bits_per_byte - 1)
        if abs(expected - self.gap_to_best_percent) > 0.05:
            raise ValueError(
                f"gap_to_best_percent is {self.gap_to_best_percent}, "
                f"but 100 * (composed / best_single - 1) is {expected}"
            )
        return self


class CurvePoint(_Record):
    """One operating point. `difference_to_zero` is bits per byte minus the zero router's at the same cost.

    `routed_difference`, of points of the group table: the composition's own router at this point's cost, mixing its
    two prices nearest in cost, minus this point. Below zero the router is better. `told_difference` is the same of
    that router when it is told the domain of each text, as the table is.
    """

    price: float | None = None
    cost: Cost
    bits_per_byte: Interval
    difference_to_zero: Interval | None = None
    routed_difference: Interval | None = None
    told_difference: Interval | None = None


class Curve(_Record):
    """A router's points. A `fixed` curve is one candidate: labelled with its name, and with one point."""

    label: str
    role: Role
    points: Annotated[list[CurvePoint], Field(min_length=1)]


class Budget(_Record):
    """The composition's own router at a share of the dearest candidate's cost.

    Two prices are mixed at random to meet the cost, or the dearest of them and the bare trunk. A router that never
    spends as much is taken as it is.
    """

    share: Annotated[float, Field(gt=0, le=1)]
    point: CurvePoint


class RoutingShare(_Record):
    """The share of a domain's routing decisions that went to a module at a width (no module: trunk alone)."""

    domain: str
    module: str | None
    width: Count
    share: Share


class Sample(_Record):
    """A text cut into the tokenizer's pieces, with the routing decided while reading each piece."""

    domain: str
    pieces: list[str]
    module: list[str | None]
    width: list[Count]

    @model_validator(mode="after")
    def _is_aligned(self) -> Self:
        if not len(self.pieces) == len(self.module) == len(self.width):
            raise ValueError("a sample has one module and one width for each piece")
        return self


class ParentEntry(_Record):
    """An artifact that another was made from, as in the manifest's lineage."""

    ref: str
    digest: str
    relation: str


class Learned(_Record):
    """An artifact that the router learned from, where another one of its name is composed."""

    ref: str
    digest: str


class ModuleEntry(_Record):
    """What a reader wants to know about a module of the composition.

    `in_place_of` is there only where whoever composed the model accepted that the router learned from another artifact.
    """

    ref: str
    digest: str
    owner: str
    widths: list[Count]
    parameters: Count
    licence: str | None = None
    parents: list[ParentEntry] = Field(default_factory=list)
    in_place_of: Learned | None = Field(default=None, exclude_if=lambda learned: learned is None)


class TrunkEntry(_Record):
    """The trunk that all modules were trained beside."""

    ref: str
    digest: str
    parameters: Count
    licence: str | None = None


class RouterEntry(_Record):
    """A router behind a curve of the same label; one that needs no weights has neither ref nor digest."""

    label: str
    ref: str | None = None
    digest: str | None = None
    licence: str | None = None


class Results(_Record):
    """All of `results.json`. Lists may be empty: the report leaves out what was not measured."""

    format: Literal[1] = 1
    name: str
    lockfile: dict[str, JsonValue]
    created: str
    elapsed_seconds: Annotated[float, Field(ge=0)]
    domains: Annotated[list[DomainEntry], Field(min_length=1)]
    candidates: list[CandidateEntry]
    matrix: list[MatrixCell]
    acceptance: list[Acceptance] = Field(default_factory=list)
    exact_match: list[ExactMatch] = Field(default_factory=list)
    curves: list[Curve] = Field(default_factory=list)
    budgets: list[Budget] = Field(default_factory=list)
    routing: list[RoutingShare] = Field(default_factory=list)
    samples: list[Sample] = Field(default_factory=list)
    modules: list[ModuleEntry]
    trunk: TrunkEntry
    routers: list[RouterEntry] = Field(default_factory=list)

    @field_validator("created")
    @classmethod
    def _is_a_moment(cls, text: str) -> str:
        if datetime.fromisoformat(text).tzinfo is None:
            raise ValueError(f"{text!r} has no time zone: write +00:00 for UTC")
        return text

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        domains = _once("domain", (domain.name for domain in self.domains))
        candidates = _once("candidate", (candidate.name for candidate in self.candidates))
        _once("matrix cell", ((c.system, c.module, c.width, c.domain) for c in self.matrix))
        _once("exact match", ((e.system, e.module, e.width, e.level) for e in self.exact_match))
        _once("routing share", ((r.domain, r.module, r.width) for r in self.routing))
        _once("curve", (curve.label for curve in self.curves))
        _once("budget", (budget.share for budget in self.budgets))
        used = [cell.domain for cell in self.matrix] + [entry.domain for entry in self.acceptance]
        used += [share.domain for share in self.routing] + [sample.domain for sample in self.samples]
        _among("domain", used, domains)
        _among("candidate", (entry.best_single.name for entry in self.acceptance), candidates)
        _among("candidate", (curve.label for curve in self.curves if curve.role == "fixed"), candidates)
        return self

    @model_validator(mode="after")
    def _shares_and_points_are_possible(self) -> Self:
        for curve in self.curves:
            if curve.role == "fixed" and len(curve.points) != 1:
                raise ValueError(f"fixed curve {curve.label!r} has {len(curve.points)} points: expected one")
        for domain in self.domains:
            total = sum(share.share for share in self.routing if share.domain == domain.name)
            if total > 1 + 1e-6:
                raise ValueError(f"routing shares of domain {domain.name!r} sum to {total}: expected at most 1")
        return self


def load_results(path: str | Path) -> Results:
    """Reads and checks a results.json. What is wrong with it is a LabError that names the file and place."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except OSError as error:
        raise classify(error)(f"{path}: cannot read results: {error.strerror or error}.") from error
    except ValueError as error:
        raise Damaged(f"{path}: not a valid JSON text: {error}. Run the evaluation again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        version = data.get("format") if isinstance(data, dict) else None
        raise Refused(f"{path}: results format {version!r}; this version reads format {FORMAT}.")
    try:
        return Results.model_validate_json(text)
    except ValidationError as error:
        raise Damaged(f"{path}: {_first_line(error)}") from error


def save_results(results: Results, path: str | Path) -> Path:
    """Writes results as JSON, whole or not at all."""
    path = Path(path)
    text = json.dumps(results.model_dump(mode="json"), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    write_text(path, text)
    return path


def _once(what: str, keys: Iterable[Any]) -> set[Any]:
    seen: set[Any] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{what} {key!r} is there twice")
        seen.add(key)
    return seen


def _among(what: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what} {name!r} is not listed.{did_you_mean(name, known)}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _once("key", (key for key, _ in pairs))
    return dict(pairs)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place + ': ' if place else ''}{message}{more}."
