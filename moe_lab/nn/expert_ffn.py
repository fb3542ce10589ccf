"""The one function that does the routed layer's work, over interchangeable backends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_lab.errors import LabError, Unavailable, did_you_mean
from moe_lab.nn.backends import block_rows, capacity, native, reference, worklist
from moe_lab.nn.backends.grouped_matmul import Megablox, MosaicGpu, megablox_obstacle, probe_gpu
from moe_lab.nn.pool import Pool, Routing

Run = Callable[[jax.Array, Pool, Routing, str, int | None], jax.Array]


def _grouped(kernel: block_rows.GroupedMatmul) -> Run:
    return lambda h, pool, routing, activation, budget: block_rows.expert_ffn(
        kernel, h, pool, routing, activation, budget
    )


def _native(h: jax.Array, pool: Pool, routing: Routing, activation: str, _: int | None) -> jax.Array:
    require_backend("native")
    return native.expert_ffn(h, pool, routing, activation)


BACKENDS: MappingProxyType[str, Run] = MappingProxyType(
    {
        "reference": lambda h, pool, routing, activation, _: reference.expert_ffn(h, pool, routing, activation),
        "worklist": lambda h, pool, routing, activation, _: worklist.expert_ffn(h, pool, routing, activation),
        "native": _native,
        "capacity": capacity.expert_ffn,
        "megablox": _grouped(Megablox(interpret=False)),
        "megablox-interpreted": _grouped(Megablox(interpret=True)),
        "mosaic-gpu": _grouped(MosaicGpu()),
    }
)


_NEEDS = {"native": "cpu", "megablox": "tpu", "mosaic-gpu": "gpu"}


class Choice(NamedTuple):
    """A backend and why it was taken; `str` of it is one sentence."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"backend {self.backend}: {self.reason}"


def choose_backend(
    backend: str = "auto", *, d_model: int, block: int, platform: str | None = None, dtype: DTypeLike = jnp.float32
) -> Choice:
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
        if backend not in BACKENDS:
            raise LabError(f'backend "{backend}" does not exist.{did_you_mean(backend, ["auto", *BACKENDS])}')
        return Choice(backend, "named by the caller")
    platform = platform or jax.default_backend()
    if platform == "tpu":
        obstacle = megablox_obstacle(d_model, block)
        if obstacle is None:
            return Choice("megablox", "a TPU, and the shapes suit its grouped matmul kernel")
        return Choice("worklist", obstacle)
    if platform == "gpu":
        obstacle = probe_gpu()
        if obstacle is None:
            return Choice("mosaic-gpu", "a GPU on which jax's grouped matmul gave the right numbers just now")
        return Choice("worklist", obstacle)
    if platform == "cpu":
        obstacle = native.obstacle() if dtype == jnp.float32 else f"the compiled kernel knows float32, not {dtype}"
        if obstacle is None:
            return Choice("native", "a CPU, and the compiled kernel gave the right numbers on it")
        return Choice("worklist", obstacle)
    return Choice("worklist", f"on {platform} it does only the routed work and drops nothing")


def require_backend(backend: str) -> None:
    """Refuses a backend that the default device cannot run. Compiling for another machine needs no such check."""
    needed, here = _NEEDS.get(backend), jax.default_backend()
    if needed not in (None, here):
        raise Unavailable(f'backend "{backend}" needs a {needed}, and this is a {here}; use backend: auto')
    obstacle = native.obstacle() if backend == "native" else None
    if obstacle is not None:
        raise Unavailable(f'backend "native" cannot run here: {obstacle}; use backend: auto')


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
        backend: `auto` (see `choose_backend`), `reference` (dense, the oracle), `native` (CPU, compiled C++) and
            `worklist` (anywhere), whose work is proportional to the routed blocks, `megablox` (TPU), `mosaic-gpu`
            (Hopper), or `capacity` (static shapes, may drop).
        budget: block rows, that is tokens times blocks, to make room for, rounded up to whole tiles. Used by `capacity`
            and the grouped matmuls, whose memory it bounds; rows beyond it are left out, and `left_out` counts them.
            The grouped matmuls drop nothing without one.

    Returns:
        `[T, D]` in the dtype of `h_TD`, differentiable in the tokens, the blocks and the routing weights.
    """
    assert routing.expert.ndim == 2, "flatten the routing to [T, K] first"
    blocks = jax.tree.map(lambda w: w.astype(h_TD.dtype), pool.blocks)
    choice = choose_backend(backend, d_model=h_TD.shape[1], block=blocks.gate.shape[2], dtype=h_TD.dtype)
    return BACKENDS[choice.backend](h_TD, Pool(blocks, pool.start, pool.count), routing, activation, budget)


_DROPLESS = ("reference", "native", "worklist")


def may_leave_out(backend: str, budget: int | None) -> bool:
    """Whether a backend (not `auto`) with this budget can meet a routing that it has no room for."""
    return backend == "capacity" or (budget is not None and backend not in _DROPLESS)


def left_out(pool: Pool, routing: Routing, backend: str, budget: int | None = None) -> jax.Array:
    """Block rows that `expert_ffn` with the same arguments leaves out: int32, and 0 for backends that drop nothing."""
    if not may_leave_out(backend, budget):
        return jnp.zeros((), jnp.int32)
    if backend == "capacity":
        return capacity.left_out(pool, routing, budget)
    assert budget is not None
    return block_rows.left_out(pool, routing, budget)


class LayerOutput(NamedTuple):
    """What a routed layer computed, and what its limits had no room for."""

    y_TD: jax.Array
    left_out: jax.Array  # int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneDevice:
    """How routed layers run where everything is on one device. See `expert_ffn` for the fields."""

    backend: str = "auto"
    budget: int | None = None

    def __call__(self, h_TD: jax.Array, pool: Pool, routing: Routing, *, activation: str) -> LayerOutput:
        """Runs one layer."""
        block = pool.blocks.gate.shape[2]
        chosen = choose_backend(self.backend, d_model=h_TD.shape[1], block=block, dtype=h_TD.dtype).backend
        y_TD = expert_ffn(h_TD, pool, routing, activation=activation, backend=chosen, budget=self.budget)
        return LayerOutput(y_TD, left_out(pool, routing, chosen, self.budget))


def routed_blocks(pool: Pool, routing: Routing) -> jax.Array:
    """Blocks that each token runs: int32[T]. The honest cost of a routing, before any rounding by a backend."""
    return jnp.minimum(routing.width, pool.count[routing.expert]).sum(-1)
