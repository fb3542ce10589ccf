"""What a kind of expert says of itself: the contract, and the one place that knows how its weights look.

A module contributes to some layers of a trunk. What it contributes to one layer is a NamedTuple of arrays, cut into
blocks of units along their first axis, so that a narrower width is a prefix and blocks of many modules share one pool.
A gated FFN is the first kind; what else fits into blocks can be another. `moe_lab.experts.kind_conformance` checks one.
Costs and shapes are read with manifests, so a kind imports array libraries only inside the functions that need them.

Shape letters: T tokens, K choices per token, N blocks, D model width, U units per block, F units.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from moe_lab.errors import Refused

if TYPE_CHECKING:
    import jax
    import numpy as np

    from moe_lab.nn.decoder import RunLayer
    from moe_lab.nn.expert_ffn import LayerOutput
    from moe_lab.nn.pool import Pool, Routing


class Cost(NamedTuple):
    """What one token spends in one block."""

    multiply_adds: int
    bytes_looked_up: int = 0
    """For kinds that address rows of a table instead of multiplying all of it."""


class ExpertKind(abc.ABC):
    """One kind of contribution. Nothing outside of it knows the names, shapes or arithmetic of its arrays.

    Attributes:
        name: what `kind` says in a module's interface.
        parts: names of the arrays of one layer, in the order of the NamedTuple that holds them.
        runs_on_mesh: whether the routed layer of `moe_lab.parallel` computes it; others run on one device.
    """

    name: str
    parts: tuple[str, ...]
    runs_on_mesh: bool = False

    @abc.abstractmethod
    def block_shapes(self, d_model: int, block: int) -> tuple[tuple[int, ...], ...]:
        """The shape of each part of one block, without the axis that counts blocks."""

    @abc.abstractmethod
    def init(self, key: jax.Array, d_model: int, width: int, block: int) -> Any:
        """Fresh weights of one layer that add nothing yet, and yet have a gradient. The last block is filled up."""

    @abc.abstractmethod
    def from_parts(self, parts: Sequence[Any]) -> Any:
        """The weights of one layer from its arrays in the order of `parts`."""

    @abc.abstractmethod
    def cut(self, weights: Any, width: int) -> Any:
        """The narrower contribution that the first `width` units make."""

    @abc.abstractmethod
    def permute(self, weights: Any, order_F: np.ndarray) -> Any:
        """The same function with its units, those that fill up the last block included, in another order."""

    @abc.abstractmethod
    def cost(self, d_model: int, block: int) -> Cost:
        """What one token spends in one block."""

    @abc.abstractmethod
    def run(self, h_TD: jax.Array, pool: Pool, routing: Routing, *, activation: str) -> jax.Array:
        """What the blocks that each token asks for add: float[T, D]; rows that ask for nothing get zeros."""

    @abc.abstractmethod
    def activations(self, h_TD: jax.Array, weights: Any, activation: str) -> jax.Array:
        """[T, F]: what the units answer to normalised inputs, for strategies that rank them."""

    @abc.abstractmethod
    def output_norms(self, weights: Any) -> np.ndarray:
        """float[F]: Euclidean norm of what each unit adds where its activation is 1."""

    def on_one_device(self, backend: str = "auto") -> RunLayer:
        """How a model runs its routed layers where everything is on one device: `run`, or one of several backends.

        Raises:
            Refused: the backend is not one of this kind's.
        """
        if backend != "auto":
            raise Refused(f'backend "{backend}" does not run experts of kind {self.name}; leave it at auto')
        return KindLayer(self)

    def block_parameters(self, d_model: int, block: int) -> int:
        """Stored numbers of one block."""
        return sum(math.prod(shape) for shape in self.block_shapes(d_model, block))

    def shapes(self, blocks: int, d_model: int, block: int) -> dict[str, tuple[int, ...]]:
        """The shape of each part of one layer."""
        shapes = self.block_shapes(d_model, block)
        return {part: (blocks, *shape) for part, shape in zip(self.parts, shapes, strict=True)}

    def count_blocks(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Blocks of a layer by the shapes of its parts; 0 if they have none."""
        first = shapes[self.parts[0]]
        return first[0] if first else 0


@dataclasses.dataclass(frozen=True)
class KindLayer:
    """A routed layer on one device that runs what the kind itself computes; nothing is left out."""

    kind: ExpertKind

    def __call__(self, h_TD: jax.Array, pool: Pool, routing: Routing, *, activation: str) -> LayerOutput:
        """Runs one layer."""
        import jax.numpy as jnp

        from moe_lab.nn.expert_ffn import LayerOutput

        return LayerOutput(self.kind.run(h_TD, pool, routing, activation=activation), jnp.zeros((), jnp.int32))
