"""A gated FFN, the form of a trunk's own: `(act(h @ gate) * (h @ up)) @ down`, a sum over its hidden units.

Shape letters: T tokens, N blocks, D model width, U hidden units per block, F hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moe_lab.experts.kind import Cost, ExpertKind

if TYPE_CHECKING:
    import jax
    import numpy as np

    from moe_lab.nn.expert_ffn import OneDevice
    from moe_lab.nn.pool import Blocks, Pool, Routing


class GatedFFN(ExpertKind):
    """Runs through the backends of `moe_lab.nn`, whose pool holds its three projections."""

    name = "gated_ffn"
    parts = ("gate", "up", "down")
    runs_on_mesh = True

    def block_shapes(self, d_model: int, block: int) -> tuple[tuple[int, ...], ...]:
        return (d_model, block), (d_model, block), (block, d_model)

    def init(self, key: jax.Array, d_model: int, width: int, block: int) -> Blocks:
        """`down` is zero: composed with the trunk it changes nothing yet."""
        import jax
        import jax.numpy as jnp

        from moe_lab.nn.pool import to_blocks

        init = jax.nn.initializers.truncated_normal(d_model**-0.5)
        gate_key, up_key = jax.random.split(key)
        shape = (d_model, width)
        return to_blocks(init(gate_key, shape), init(up_key, shape), jnp.zeros(shape[::-1], jnp.float32), block)

    def from_parts(self, parts: Sequence[Any]) -> Blocks:
        from moe_lab.nn.pool import Blocks

        return Blocks(*parts)

    def cut(self, weights: Blocks, width: int) -> Blocks:
        from moe_lab.nn.pool import from_blocks, to_blocks

        gate, up, down = from_blocks(weights)
        return to_blocks(gate[:, :width], up[:, :width], down[:width], weights.gate.shape[2])

    def permute(self, weights: Blocks, order_F: np.ndarray) -> Blocks:
        """Columns of gate and up go with rows of down."""
        from moe_lab.nn.pool import from_blocks, to_blocks

        gate, up, down = from_blocks(weights)
        return to_blocks(gate[:, order_F], up[:, order_F], down[order_F], weights.gate.shape[2])

    def cost(self, d_model: int, block: int) -> Cost:
        """Gate, up and down."""
        return Cost(multiply_adds=3 * d_model * block)

    def run(self, h_TD: jax.Array, pool: Pool, routing: Routing, *, activation: str) -> jax.Array:
        from moe_lab.nn.expert_ffn import expert_ffn

        return expert_ffn(h_TD, pool, routing, activation=activation)

    def on_one_device(self, backend: str = "auto") -> OneDevice:
        from moe_lab.nn.expert_ffn import OneDevice

        return OneDevice(backend=backend)

    def activations(self, h_TD: jax.Array, weights: Blocks, activation: str) -> jax.Array:
        from moe_lab.nn.activations import TRUNK_ACTIVATIONS
        from moe_lab.nn.pool import from_blocks

        gate, up, _ = from_blocks(weights)
        return TRUNK_ACTIVATIONS[activation](h_TD @ gate) * (h_TD @ up)

    def output_norms(self, weights: Blocks) -> np.ndarray:
        import jax.numpy as jnp
        import numpy as np

        from moe_lab.nn.pool import from_blocks

        return np.asarray(jnp.linalg.norm(from_blocks(weights)[2], axis=-1))


KIND = GatedFFN()
