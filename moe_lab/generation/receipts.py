"""What a text cost and whose modules worked on it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moe_lab.compose.model import ComposedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModuleUse:
    """One module's share of a text."""

    module: str
    """The module's reference, `owner/name@version`."""
    digest: str
    """Of its manifest."""
    tokens: int
    """Tokens that ran any of it."""
    blocks: int
    """Blocks run, over all tokens and layers."""
    multiply_adds: int

    @property
    def owner(self) -> str:
        return self.module.partition("/")[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one text cost: every token that was read, prompt and written ones; the last one written is never read."""

    price: float
    without: tuple[str, ...]
    tokens_read: int
    router_multiply_adds: int
    modules: tuple[ModuleUse, ...]
    """Those that worked, the one with the most multiply-adds first."""

    @property
    def multiply_adds(self) -> int:
        """In the routed layers, the router's own included."""
        return self.router_multiply_adds + sum(use.multiply_adds for use in self.modules)

    def as_json(self) -> dict[str, Any]:
        """For documents and ledgers."""
        modules = [{"owner": use.owner, **dataclasses.asdict(use)} for use in self.modules]
        return {**dataclasses.asdict(self), "multiply_adds": self.multiply_adds, "modules": modules}


class Tally:
    """Counts while a text is read."""

    def __init__(self, model: ComposedModel):
        self._model = model
        self._tokens_E, self._blocks_E = np.zeros((2, len(model.space.modules)), np.int64)
        self.tokens_read = 0

    def add(self, expert_TK: np.ndarray, blocks_TK: np.ndarray) -> None:
        """Counts the tokens of a chunk by what ran."""
        self.tokens_read += len(expert_TK)
        ran_TKE = (expert_TK[..., None] == np.arange(len(self._blocks_E))) & (blocks_TK > 0)[..., None]
        self._tokens_E += ran_TKE.any(axis=1).sum(axis=0)
        self._blocks_E += np.where(ran_TKE, blocks_TK[..., None], 0).sum(axis=(0, 1))

    def receipt(self, price: float, without: tuple[str, ...]) -> Receipt:
        """So far."""
        model, parts = self._model, {module.name: module.part for module in self._model.modules}
        uses = [
            ModuleUse(
                module=parts[name].ref,
                digest=parts[name].digest,
                tokens=int(tokens),
                blocks=int(blocks),
                multiply_adds=int(blocks) * model.multiply_adds_per_block,
            )
            for name, tokens, blocks in zip(model.space.modules, self._tokens_E, self._blocks_E, strict=True)
            if tokens
        ]
        return Receipt(
            price=price,
            without=without,
            tokens_read=self.tokens_read,
            router_multiply_adds=self.tokens_read * model.router.multiply_adds,
            modules=tuple(sorted(uses, key=lambda use: -use.multiply_adds)),
        )
