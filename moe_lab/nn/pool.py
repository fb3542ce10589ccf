"""The expert pool of one layer, and the routing that says what to run of it.

Shape letters: T tokens, K choices per token, E modules, N blocks in the pool, D model width, U hidden units per block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PROJECTIONS = ("gate", "up", "down")


class Blocks(NamedTuple):
    """The gated FFN of one module in one layer, cut into blocks of hidden units: a prefix is a narrower module."""

    gate: jax.Array  # [N, D, U]
    up: jax.Array  # [N, D, U]
    down: jax.Array  # [N, U, D]

    @property
    def num_blocks(self) -> int:
        return self.gate.shape[0]


class Routing(NamedTuple):
    """What each token runs: `width` counts blocks, 0 runs nothing; wider than the module runs all of it."""

    expert: jax.Array  # int32[..., K]
    width: jax.Array  # int32[..., K]
    weight: jax.Array  # float32[..., K]

    def flat(self) -> Routing:
        """The same routing with all leading axes merged into one token axis."""
        return Routing(*(field.reshape(-1, field.shape[-1]) for field in self))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pool:
    """All blocks of all modules of one layer. Module e owns blocks `start[e] : start[e] + count[e]`.

    `start` and `count` are arrays, so a pool of the same total size never recompiles when modules are swapped.
    """

    blocks: Blocks
    start: jax.Array  # int32[E]
    count: jax.Array  # int32[E]

    @property
    def num_modules(self) -> int:
        return self.start.shape[0]


def make_pool(modules: Sequence[Blocks]) -> Pool:
    """Lays the modules of one layer behind each other, in the order given."""
    assert modules, "a pool holds at least one module"
    count = np.array([module.num_blocks for module in modules], np.int32)
    start = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int32)
    blocks = type(modules[0])(*(jnp.concatenate(parts) for parts in zip(*modules, strict=True)))
    return Pool(blocks, jnp.asarray(start), jnp.asarray(count))


def to_blocks(gate_DF: jax.Array, up_DF: jax.Array, down_FD: jax.Array, block: int) -> Blocks:
    """Cuts a gated FFN of any width F into blocks; the last one is filled up with zeros, which changes nothing."""
    padding = -gate_DF.shape[1] % block
    gate, up = (
        jnp.pad(w, ((0, 0), (0, padding))).reshape(w.shape[0], -1, block).swapaxes(0, 1) for w in (gate_DF, up_DF)
    )
    down = jnp.pad(down_FD, ((0, padding), (0, 0))).reshape(-1, block, down_FD.shape[1])
    return Blocks(gate, up, down)


def from_blocks(blocks: Blocks) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The inverse of `to_blocks`, padding included: gate [D, F], up [D, F], down [F, D]."""
    n, d, b = blocks.gate.shape
    gate, up = (w.swapaxes(0, 1).reshape(d, n * b) for w in (blocks.gate, blocks.up))
    return gate, up, blocks.down.reshape(n * b, d)
