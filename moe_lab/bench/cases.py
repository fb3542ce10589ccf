"""What is measured: a pool of modules, tokens, and who is routed where.

Shape letters: T tokens, K choices per token, E modules, D model width, U hidden units of a block.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from moe_lab.config.spec import Spec

RoutingKind = Literal["uniform", "zipf", "one-hot", "prefix", "half", "nothing"]

MIXED_SHARES = (2.0, 2.0, 1.0, 1.0, 0.75, 0.75, 0.25, 0.25)
"""Widths from 2 to a quarter of the mean: 8:1, and the mean is that of the uniform case."""


class Case(Spec):
    """One layer and one routing of it. `counts` are blocks per module."""

    name: str
    tokens: PositiveInt
    d_model: PositiveInt
    block: PositiveInt
    counts: tuple[int, ...]
    top_k: PositiveInt
    routing: RoutingKind = "uniform"
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def widest(self) -> int:
        return max(self.counts)

    @property
    def uniform(self) -> bool:
        """Whether all modules are of one size."""
        return len(set(self.counts)) == 1

    def route(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Module, width in blocks and weight of every choice, [T, K] each; a token's modules are distinct."""
        rng = np.random.default_rng(self.seed)
        modules, shape = len(self.counts), (self.tokens, self.top_k)
        popularity = np.zeros(modules)
        if self.routing == "zipf":
            popularity = -0.8 * np.log(np.arange(1, modules + 1))
        if self.routing == "one-hot":
            expert = np.broadcast_to(np.arange(self.top_k), shape)
        else:  # Gumbel top-k draws without replacement
            expert = np.argsort(-(popularity + rng.gumbel(size=(self.tokens, modules))), axis=1)[:, : self.top_k]
        own = np.array(self.counts)[expert]
        weight = rng.dirichlet(np.ones(self.top_k), self.tokens)
        return expert.astype(np.int32), self._width(own).astype(np.int32), weight.astype(np.float32)

    def _width(self, own: np.ndarray) -> np.ndarray:
        """Blocks run of each choice, from the blocks of its module."""
        if self.routing == "nothing":
            return np.zeros_like(own)
        if self.routing == "half":
            return -(-own // 2)
        if self.routing == "prefix":
            narrow = np.arange(len(own))[:, None] % 2 == 0
            return np.where(narrow, -(-own // 4), own)
        return own

    def padded_weight_bytes(self) -> int:
        """Of all modules as wide as the widest, in float32: the most that a competitor makes of them."""
        return 4 * 3 * self.d_model * self.block * self.widest * len(self.counts)

    def routed_blocks(self) -> int:
        """Block rows asked for: the sum of all widths."""
        return int(self.route()[1].sum())

    def forward_flops(self) -> float:
        """Multiplications and additions of the forward pass that the routing asks for, and no others."""
        return 6.0 * self.d_model * self.block * self.routed_blocks()


def _layer(tokens: int, d_model: int, experts: int, top_k: int, mixed: bool, routing: RoutingKind = "uniform") -> Case:
    """E8 k2 of mean width 2 D, or E64 k8 of mean width D / 2: equal work per token in all of them."""
    mean_width = 2 * d_model if experts == 8 else d_model // 2
    block = min(128, mean_width // 4)
    mean = mean_width // block
    shares = np.resize(MIXED_SHARES, experts) if mixed else np.ones(experts)
    counts = tuple(int(count) for count in shares * mean)
    assert sum(counts) == mean * experts, "mixed widths have the mean of uniform ones"
    size = "mixed" if mixed else "uniform"
    name = f"T{tokens}-D{d_model}-E{experts}k{top_k}-{size}" + ("" if routing == "uniform" else f"-{routing}")
    return Case(name=name, tokens=tokens, d_model=d_model, block=block, counts=counts, top_k=top_k, routing=routing)


def _cases() -> dict[str, Case]:
    shapes = [
        _layer(tokens, d_model, experts, top_k, mixed)
        for tokens in (512, 2048)
        for d_model in (512, 1024)
        for experts, top_k in ((8, 2), (64, 8))
        for mixed in (False, True)
    ]
    kinds: tuple[RoutingKind, ...] = ("zipf", "one-hot", "prefix", "half", "nothing")
    routings = [_layer(2048, 512, 8, 2, mixed, kind) for mixed in (False, True) for kind in kinds]
    eightfold = Case(
        name="T2048-D512-E8k1-eightfold",
        tokens=2048,
        d_model=512,
        block=128,
        counts=(1, 1, 2, 2, 4, 4, 8, 8),
        top_k=1,
    )
    return {case.name: case for case in (*shapes, *routings, eightfold)}


CASES = _cases()
"""Everything `moe-lab bench` can measure, by name."""

QUICK = ("T2048-D512-E8k2-uniform", "T2048-D512-E8k2-mixed")
"""What it measures when nothing is named."""
