"""The routed layer, attention and products in C++, called by XLA: the fastest way on a CPU with a compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.nn.backend import Auto, Backend, LayerShape

if TYPE_CHECKING:
    import jax
    from jax.typing import DTypeLike

    from moe_lab.nn.cache import Chunk, LayerCache
    from moe_lab.nn.kernels.attention import Scoring
    from moe_lab.nn.pool import Pool, Routing


def obstacle(layer: LayerShape | None = None) -> str | None:
    """Why the kernel cannot run this layer here, or, without one, any; None if it can."""
    return _obstacle_in(None if layer is None else layer.dtype)


def obstacle_here(dtype: DTypeLike) -> str | None:
    """Why the default device cannot run attention or a product in this dtype through the kernel; None if it can."""
    import jax

    if jax.default_backend() != "cpu":
        return f"this is a {jax.default_backend()}"
    return _obstacle_in(dtype)


def _obstacle_in(dtype: DTypeLike | None) -> str | None:
    """Why the kernel cannot be used, in a dtype if one is asked about."""
    import jax.numpy as jnp

    from moe_lab.nn.backends.native import check

    if dtype is not None and dtype != jnp.float32:
        return f"the compiled kernel knows float32, not {dtype}"
    return check.obstacle()


def attend(
    scoring: Scoring,
    q_BSHA: jax.Array,
    k_BSGA: jax.Array,
    v_BSGA: jax.Array,
    segment_ids_BS: jax.Array,
    turns: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """Attention of whole rows, as `whole_rows` of `moe_lab.nn.attention` defines it, where it has no obstacle."""
    from moe_lab.nn.backends.native import attention

    return attention.attend(scoring, q_BSHA, k_BSGA, v_BSGA, segment_ids_BS, turns)


def attend_cached(
    scoring: Scoring,
    q_BSHA: jax.Array,
    k_BSGA: jax.Array,
    v_BSGA: jax.Array,
    cache: LayerCache,
    chunk: Chunk,
) -> tuple[jax.Array, LayerCache]:
    """Attention of a chunk, as `behind_cache` of `moe_lab.nn.attention` defines it, where it has no obstacle."""
    from moe_lab.nn.backends.native import attention

    return attention.attend_cached(scoring, q_BSHA, k_BSGA, v_BSGA, cache, chunk)


def multiply(x_TD: jax.Array, weight: jax.Array, *, turned: bool = False) -> jax.Array:
    """A product, as `product_by_token` of `moe_lab.nn.products` defines it, where it has no obstacle."""
    from moe_lab.nn.backends.native import dense

    return dense.multiply(x_TD, weight, turned=turned)


def norm(x_TD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """Root mean square norm of tokens, where it has no obstacle."""
    from moe_lab.nn.backends.native import dense

    return dense.norm(x_TD, scale_D, eps)


def _run(h_TD: jax.Array, pool: Pool, routing: Routing, activation: str, budget: int | None) -> jax.Array:
    from moe_lab.nn.backends.native.layer import expert_ffn

    BACKEND.require()  # which also makes XLA know the kernel
    return expert_ffn(h_TD, pool, routing, activation)


BACKEND = Backend(
    name="native",
    where="CPU, float32, with a C++ compiler; the default there",
    how="compiled tiles of tokens over blocks in place",
    run=_run,
    platform="cpu",
    obstacle=obstacle,
    auto=Auto(1, "a CPU, and the compiled kernel gave the right numbers on it"),
)
