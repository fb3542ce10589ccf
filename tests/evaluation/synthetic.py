"""A synthetic evaluation: invented losses of a plausible shape, run through the real curves."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from moe_lab.evaluation.curves import TokenOutcomes, choice_point, price_curve, zero_curve
from moe_lab.evaluation.results import (
    Acceptance,
    BestSingle,
    Budget,
    CandidateEntry,
    Curve,
    DomainEntry,
    ExactMatch,
    MatrixCell,
    ModuleEntry,
    ParentEntry,
    Results,
    RouterEntry,
    RoutingShare,
    Sample,
    TrunkEntry,
)
from moe_lab.metrics.bootstrap import ratio_interval
from moe_lab.metrics.choices import fixed, group_table, oracle
from moe_lab.metrics.hull import zero_router

DOMAINS = ("python", "english", "readmes", "arithmetic")
LADDERS = {
    "snakes/python": (128, 512, 2048),
    "prose/english": (128, 512, 1024),
    "docs/readmes": (128, 512),
    "sums/arithmetic": (64, 256),
}
# Bits that a module at full width takes off a hard token of each domain; below zero it does harm.
SKILL = np.array([[2.3, -0.2, 0.5, -0.6], [0.0, 1.5, 0.7, -0.5], [0.6, 0.6, 1.6, -0.4], [-0.5, -0.6, -0.5, 3.2]])
ROWS, TOKENS_PER_ROW, RESAMPLES = 60, 48, 200
PRICES = [0.0, 2e-8, 5e-8, 1e-7, 2e-7, 5e-7, 1e-6, 4e-6]

TEXTS = {
    "python": """def fold(words, width=72):
    \'\'\'Joins words into lines of at most `width`.\'\'\'
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) < width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
""",
    "english": """A mapping object maps hashable values to arbitrary objects. Mappings are mutable
objects. There is currently only one standard mapping type, the dictionary. A dictionary's keys are
almost arbitrary values. Values that are not hashable may not be used as keys.
""",
    "arithmetic": """addition 7+8 = 15
addition 4+9 = 13
multiplication 34*27 = 918
multiplication 86*19 = 1634
""",
}


@dataclass
class Synthetic:
    """Outcome tables of a validation and a test half, and a noisy router on them."""

    seed: int = 0
    candidates: list[CandidateEntry] = field(init=False)

    def __post_init__(self) -> None:
        self.candidates = [CandidateEntry(name="trunk", module=None, width=0, cost=0)] + [
            CandidateEntry(name=f"{module}:{width}", module=module, width=width, cost=width * 3 * 256 * 4)
            for module, widths in LADDERS.items()
            for width in widths
        ]
        self.rng = np.random.default_rng(self.seed)
        self.validation, self.test = self._outcomes(), self._outcomes()
        self.zero = zero_router(self.validation.fixed_points())

    def _outcomes(self) -> TokenOutcomes:
        group = np.repeat(np.arange(len(DOMAINS)), ROWS * TOKENS_PER_ROW)
        hard = self.rng.beta(0.5, 1.3, len(group))
        row = self.rng.gamma(20, 1 / 20, len(group) // TOKENS_PER_ROW).repeat(TOKENS_PER_ROW)
        trunk = (1.2 + np.array([5.0, 6.2, 6.0, 5.5])[group] * hard) * row
        columns = [trunk]
        for candidate in self.candidates[1:]:
            assert candidate.module is not None
            skill = SKILL[list(LADDERS).index(candidate.module)][group]
            part = (candidate.width / LADDERS[candidate.module][-1]) ** 0.45
            columns.append(trunk - skill * part * 1.9 * hard**1.2 + self.rng.normal(0, 0.08, len(group)))
        return TokenOutcomes(
            loss_TC=np.maximum(np.stack(columns, axis=1), 0.01),
            cost_C=np.array([candidate.cost for candidate in self.candidates]),
            unit_T=np.arange(len(group)) // TOKENS_PER_ROW,
            group_T=group,
            bytes_T=self.rng.integers(1, 6, len(group)),
        )

    @cached_property
    def predicted_TC(self) -> np.ndarray:
        """What a learned router would believe: between the domain's mean and the truth, with noise."""
        loss, group = self.test.loss_TC, self.test.group_T
        means = np.stack([loss[group == g].mean(axis=0) for g in range(len(DOMAINS))])[group]
        return 0.55 * means + 0.45 * loss + self.rng.normal(0, 0.25, loss.shape)

    def learned(self, price: float) -> np.ndarray:
        return oracle(self.predicted_TC, self.test.cost_C, price)

    def table(self, price: float) -> np.ndarray:
        return group_table(self.validation.loss_TC, self.validation.cost_C, self.validation.group_T, price)

    def uniform(self, rung: int) -> np.ndarray:
        """The domain's own module at its narrowest (0), middle or widest width for every token."""
        names = [candidate.name for candidate in self.candidates]
        owned = [names.index(f"{m}:{widths[min(rung, len(widths) - 1)]}") for m, widths in LADDERS.items()]
        return np.array(owned)[self.test.group_T]

    def curves(self) -> list[Curve]:
        test = self.test
        drawn: dict[str, Any] = {"resamples": RESAMPLES}
        measured: dict[str, Any] = {"zero": self.zero, **drawn}
        group = price_curve(test, PRICES, lambda price: self.table(price)[test.group_T], **measured)
        best = price_curve(test, PRICES, lambda price: oracle(test.loss_TC, test.cost_C, price), **measured)
        uniform = [choice_point(test, self.uniform(rung), **measured) for rung in range(3)]
        curves = [
            Curve(label="gain", role="learned", points=price_curve(test, PRICES, self.learned, **measured)),
            Curve(label="zero router", role="zero_router", points=zero_curve(test, self.zero, **drawn)),
            Curve(label="group table", role="group_table", points=group),
            Curve(label="uniform width", role="uniform_width", points=uniform),
            Curve(label="oracle", role="oracle", points=best),
        ]
        for index, candidate in enumerate(self.candidates):
            point = choice_point(test, fixed(index, len(test.unit_T)), **measured)
            curves.append(Curve(label=candidate.name, role="fixed", points=[point]))
        return curves

    def cells(self, choice: np.ndarray, **system) -> list[MatrixCell]:
        bits, cells = self.test.bits_per_unit(choice), []
        for index, domain in enumerate(DOMAINS):
            rows = self.test.strata_U == index
            quality = ratio_interval(bits[rows], self.test.bytes_U[rows], resamples=RESAMPLES)
            cost = float(self.test.cost_C[choice[self.test.group_T == index]].mean())
            cells.append(MatrixCell(domain=domain, bits_per_byte=quality, cost=cost, **system))
        return cells

    def matrix(self) -> list[MatrixCell]:
        tokens = len(self.test.unit_T)
        cells = self.cells(fixed(0, tokens), system="trunk")
        for index, candidate in enumerate(self.candidates[1:], start=1):
            named = {"module": candidate.module, "width": candidate.width}
            cells += self.cells(fixed(index, tokens), system="alone", **named)
        cells += self.cells(self.learned(PRICES[2]), system="composed")
        for module in LADDERS:
            banned = np.array([1e9 if candidate.module == module else 0.0 for candidate in self.candidates])
            without = oracle(self.predicted_TC + banned, self.test.cost_C, PRICES[2])
            cells += self.cells(without, system="left_out", module=module)
        return cells

    def acceptance(self, matrix: list[MatrixCell]) -> list[Acceptance]:
        found = []
        for domain in DOMAINS:
            cells = [cell for cell in matrix if cell.domain == domain]
            mean = {cell.system: cell.bits_per_byte.mean for cell in cells}
            best = min((c for c in cells if c.system == "alone"), key=lambda cell: cell.bits_per_byte.mean)
            least = best.bits_per_byte.mean
            found.append(
                Acceptance(
                    domain=domain,
                    trunk=mean["trunk"],
                    best_single=BestSingle(name=f"{best.module}:{best.width}", bits_per_byte=least),
                    composed=mean["composed"],
                    no_worse_than_trunk=mean["composed"] <= mean["trunk"],
                    gap_to_best_percent=100 * (mean["composed"] / least - 1),
                )
            )
        return found

    def routing(self) -> list[RoutingShare]:
        choice, shares = self.learned(PRICES[2]), []
        for index, domain in enumerate(DOMAINS):
            counts = np.bincount(choice[self.test.group_T == index], minlength=len(self.candidates))
            for candidate, share in zip(self.candidates, counts / counts.sum(), strict=True):
                shares.append(
                    RoutingShare(domain=domain, module=candidate.module, width=candidate.width, share=float(share))
                )
        return shares

    def exact_match(self) -> list[ExactMatch]:
        strength: dict[tuple[str, str | None, int | None], float] = {
            ("trunk", None, None): -1.2,
            ("composed", None, None): 4.2,
        }
        strength |= {
            ("alone", "sums/arithmetic", 64): 2.6,
            ("alone", "sums/arithmetic", 256): 4.5,
            ("left_out", "sums/arithmetic", None): -1.0,
        }
        found = []
        for (system, module, width), easy in strength.items():
            for level in range(1, 6):
                right = self.rng.random(200) < 1 / (1 + np.exp(1.5 * level - 1.3 - easy))
                hit = ratio_interval(right.astype(float), np.ones(200), resamples=RESAMPLES)
                named: dict[str, Any] = {
                    "system": system,
                    "module": module,
                    "width": width,
                    "level": level,
                    "items": 200,
                }
                found.append(ExactMatch(**named, **hit.model_dump()))
        return found

    def samples(self) -> list[Sample]:
        samples = []
        for domain, text in TEXTS.items():
            pieces = re.findall(r"\n *| ?\w{1,5}| ?[^\w\s]| +", text)
            index = DOMAINS.index(domain)
            loss = self.test.group_T == index
            drawn = self.rng.choice(self.learned(PRICES[2])[loss], len(pieces))
            picked = [self.candidates[choice] for choice in drawn]
            samples.append(
                Sample(
                    domain=domain,
                    pieces=pieces,
                    module=[candidate.module for candidate in picked],
                    width=[candidate.width for candidate in picked],
                )
            )
        return samples

    def results(self) -> Results:
        matrix = self.matrix()
        trunk = TrunkEntry(ref="lab/trunk-tiny@1", digest="sha256-" + "7a" * 32, parameters=11_534_336)
        return Results(
            name="Synthetic example, nothing here was measured",
            created="2026-03-03T14:05:00+00:00",
            elapsed_seconds=754.2,
            lockfile={"composition": "synthetic", "trunk": trunk.digest, "policy": {"price": 5e-8}},
            domains=[DomainEntry(name=name, rows=ROWS, bytes=int(ROWS * TOKENS_PER_ROW * 3)) for name in DOMAINS],
            candidates=self.candidates,
            matrix=matrix,
            acceptance=self.acceptance(matrix),
            exact_match=self.exact_match(),
            curves=self.curves(),
            budgets=[Budget(share=0.25, point=self.curves()[0].points[0])],
            routing=self.routing(),
            samples=self.samples(),
            modules=[
                ModuleEntry(
                    ref=f"{name}@{1 + number}",
                    digest="sha256-" + f"{number}c" * 32,
                    owner=name.split("/")[0],
                    widths=list(widths),
                    parameters=widths[-1] * 3 * 256 * 4,
                    licence="Apache-2.0",
                    parents=[ParentEntry(ref=f"{name}@1", digest="sha256-" + "ab" * 32, relation="distilled")]
                    if number
                    else [],
                )
                for number, (name, widths) in enumerate(LADDERS.items())
            ],
            trunk=trunk,
            routers=[RouterEntry(label="gain", ref="lab/gain@1", digest="sha256-" + "3e" * 32)],
        )


@lru_cache(maxsize=1)
def build_synthetic_results() -> Results:
    """The whole synthetic evaluation; frozen, so that all tests can share it."""
    return Synthetic().results()
