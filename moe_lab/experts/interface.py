"""What a module and a trunk must agree on before they may meet, and what a module of a given width costs.

Everything here is arithmetic on manifests; nothing needs an array library.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from moe_lab.errors import Damaged, LabError, Refused, printable
from moe_lab.experts.kind import ExpertKind
from moe_lab.experts.kinds import DEFAULT, find_kind
from moe_lab.nn.spec import TrunkSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interface:
    """The socket of one trunk: modules made for another trunk, tokenizer or set of layers do not fit.

    `kind` is the module's own: what it puts into that socket.
    """

    trunk: str  # manifest digest
    tokenizer: str  # tokenizer digest
    d_model: int
    block: int
    activation: str
    routed_layers: tuple[int, ...]
    kind: str = DEFAULT

    @staticmethod
    def of_trunk(digest: str, tokenizer: str, spec: TrunkSpec) -> Interface:
        """The socket that a published trunk offers."""
        return Interface(
            trunk=digest,
            tokenizer=tokenizer,
            d_model=spec.d_model,
            block=spec.block,
            activation=spec.activation,
            routed_layers=spec.routed_layers,
        )

    @staticmethod
    def from_json(section: Mapping[str, Any]) -> Interface:
        """Reads the `interface` section of a module's manifest."""
        names = {field.name for field in dataclasses.fields(Interface)} - {"kind"}
        if set(section) - {"kind"} != names:
            odd = ", ".join(sorted(names ^ (set(section) - {"kind"})))
            raise Damaged(f"a module's interface names exactly {sorted(names)}; missing or unknown: {odd}")
        if not isinstance(kind := section.get("kind", DEFAULT), str):
            raise Damaged(f"a module's interface names its kind as text, not {printable(json.dumps(kind))[:80]}")
        find_kind(kind)
        return Interface(**{**section, "routed_layers": tuple(section["routed_layers"])})

    def to_json(self) -> dict[str, Any]:
        """The `interface` section of a module's manifest; `kind` stands in it only where it is not the usual one."""
        section = {**dataclasses.asdict(self), "routed_layers": list(self.routed_layers)}
        if self.kind == DEFAULT:
            del section["kind"]
        return section

    def of_kind(self, kind: str) -> Interface:
        """The interface of a module of that kind in this socket."""
        return dataclasses.replace(self, kind=kind)

    @property
    def expert_kind(self) -> ExpertKind:
        """What `kind` names: the one place that knows how such a module's weights look."""
        return find_kind(self.kind)

    def require_fit(self, module: Interface, name: str) -> None:
        """Raises a `Refused` that says in which point `module` was made for something else."""
        for field in dataclasses.fields(self):
            if field.name == "kind":
                continue
            mine, theirs = getattr(self, field.name), getattr(module, field.name)
            if mine != theirs:
                raise Refused(
                    f"{name} does not fit this trunk: its {field.name} is {theirs}, the trunk's is {mine}. "
                    f"Train it beside this trunk, or compose it with the trunk it was made for."
                )


def blocks_of(width: int, block: int) -> int:
    """Blocks that hold `width` hidden units; the last may be part empty."""
    return -(-width // block)


def rung_cost(interface: Interface, layer_blocks: Mapping[int, int], width: int) -> int:
    """Multiply-adds per token over all routed layers at one width; a narrower layer runs all it has."""
    rung = blocks_of(width, interface.block)
    blocks = sum(min(rung, count) for count in layer_blocks.values())
    return blocks * interface.expert_kind.cost(interface.d_model, interface.block).multiply_adds


def declared_cost(interface: Interface, blocks_per_layer: Mapping[int, int], ladder: Sequence[int]) -> dict[str, int]:
    """The manifest's `cost` section: multiply-adds per token at each width of the ladder."""
    return {str(width): rung_cost(interface, blocks_per_layer, width) for width in ladder}


def require_ladder(ladder: Sequence[int], widest: int, block: int, where: str) -> None:
    """A ladder rises to the module's full width; the rungs below it are whole blocks, so that each is a prefix."""
    if list(ladder) != sorted(set(ladder)) or not ladder or ladder[0] < 1:
        raise LabError(f"{where}: ladder {list(ladder)} must be widths that rise from at least 1")
    if ladder[-1] != widest:
        raise LabError(f"{where}: ladder {list(ladder)} must end at the module's full width, {widest}")
    for width in ladder[:-1]:
        if width % block:
            raise LabError(f"{where}: ladder width {width} must be a multiple of the trunk's block, {block}")
