"""The one function that does the routed layer's work, over interchangeable backends."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_lab.errors import LabError, did_you_mean
from moe_lab.nn.backend import Auto, Backend, LayerShape
from moe_lab.nn.backends import BACKENDS
from moe_lab.nn.pool import Pool, Routing


class BackendChoice(NamedTuple):
    """A backend and why it was taken; `str` of it is one sentence."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"backend {self.backend}: {self.reason}"


def choose_backend(
    backend: str = "auto", *, d_model: int, block: int, platform: str | None = None, dtype: DTypeLike = jnp.float32
) -> BackendChoice:
    """What a backend's name stands for.

    Args:
        backend: a name in `BACKENDS`, or `auto`.
        d_model: width of a token.
        block: hidden units of a block.
        platform: `cpu`, `gpu` or `tpu`; the default device's if left out.
        dtype: of the tokens.

    Returns:
        The backend itself if it was named. `auto` takes the fastest that drops nothing and runs on this platform
        with these shapes, and never `jax.lax.ragged_dot`, which computes every module for every token on CPU and GPU.
    """
    if backend != "auto":
        return BackendChoice(_find_backend(backend).name, "named by the caller")
    platform, layer = platform or jax.default_backend(), LayerShape(d_model, block, dtype)
    obstacles: list[str] = []
    for auto, candidate in rank_backends(platform):
        obstacle = candidate.obstacle(layer)
        if obstacle is None:
            reason = obstacles[0] if obstacles else auto.reason.format(platform=platform)
            return BackendChoice(candidate.name, reason)
        obstacles.append(obstacle)
    raise AssertionError(f"no backend runs anywhere: {obstacles}")


def rank_backends(platform: str) -> list[tuple[Auto, Backend]]:
    """What `auto` may take on a platform, the best first."""
    able = [(b.auto, b) for b in BACKENDS.values() if b.auto is not None and b.platform in (None, platform)]
    return sorted(able, key=lambda entry: -entry[0].rank)


def _find_backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise LabError(f'backend "{name}" does not exist.{did_you_mean(name, ["auto", *BACKENDS])}')
    return BACKENDS[name]


def require_backend(backend: str) -> None:
    """Refuses a backend that the default device cannot run; `auto` always finds one. See `Backend.require`."""
    if backend != "auto":
        _find_backend(backend).require()


def expert_ffn(
    h_TD: jax.Array,
    pool: Pool,
    routing: Routing,
    *,
    activation: str = "silu",
    backend: str = "auto",
    budget: int | None = None,
) -> jax.Array:
    """Sums the routed blocks of every token.

    `y_t = sum_k weight[t,k] * sum_{j < width[t,k]} block_{start[expert[t,k]] + j}(h_t)` with
    `block_n(h) = (act(h @ gate[n]) * (h @ up[n])) @ down[n]`.

    Args:
        h_TD: tokens, already normalised.
        pool: the layer's blocks.
        routing: `[T, K]` arrays; a width beyond the module's own runs all of it, width 0 runs nothing.
        activation: `silu` or `gelu`.
        backend: `auto` (see `choose_backend`) or a name in `BACKENDS`.
        budget: block rows, that is tokens times blocks, to make room for, rounded up to whole tiles. It bounds the
            memory of backends that may drop something; rows beyond it are left out, and
            `Backend.rows_beyond_budget` counts them. Others ignore it.

    Returns:
        `[T, D]` in the dtype of `h_TD`, differentiable in the tokens, the blocks and the routing weights.
    """
    chosen = _choose_for(h_TD, pool, backend)
    return run_backend(chosen, h_TD, pool, routing, activation=activation, budget=budget)


def _choose_for(h_TD: jax.Array, pool: Pool, backend: str) -> Backend:
    d_model, block = h_TD.shape[1], pool.blocks.gate.shape[2]
    return BACKENDS[choose_backend(backend, d_model=d_model, block=block, dtype=h_TD.dtype).backend]


def run_backend(
    backend: Backend, h_TD: jax.Array, pool: Pool, routing: Routing, *, activation: str, budget: int | None = None
) -> jax.Array:
    """`expert_ffn` where the backend is chosen already."""
    assert routing.expert.ndim == 2, "flatten the routing to [T, K] first"
    blocks = jax.tree.map(lambda w: w.astype(h_TD.dtype), pool.blocks)
    return backend.run(h_TD, Pool(blocks, pool.start, pool.count), routing, activation, budget)


class LayerOutput(NamedTuple):
    """What a routed layer computed, and what its limits had no room for."""

    y_TD: jax.Array
    dropped: jax.Array  # int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneDevice:
    """How routed layers run where everything is on one device. See `expert_ffn` for the fields."""

    backend: str = "auto"
    budget: int | None = None

    def __call__(self, h_TD: jax.Array, pool: Pool, routing: Routing, *, activation: str) -> LayerOutput:
        """Runs one layer."""
        chosen = _choose_for(h_TD, pool, self.backend)
        y_TD = run_backend(chosen, h_TD, pool, routing, activation=activation, budget=self.budget)
        return LayerOutput(y_TD, chosen.rows_beyond_budget(pool, routing, self.budget))


def routed_blocks(pool: Pool, routing: Routing) -> jax.Array:
    """Blocks that each token runs: int32[T]. The honest cost of a routing, before any rounding by a backend."""
    return jnp.minimum(routing.width, pool.count[routing.expert]).sum(-1)
