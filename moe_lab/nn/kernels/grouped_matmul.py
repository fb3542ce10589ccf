"""Grouped matmul kernels that come with jax: Megablox on TPU, Mosaic on Hopper GPUs, and a plain one, their oracle."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_lab.nn.kernels.block_rows import GroupedMatmul

LANES = 128
_MOSAIC_TILES: dict[str, Any] = {
    "block_m": 64,
    "block_n": 64,
    "block_k": 64,
    "max_concurrent_steps": 2,
    "grid_block_n": 1,
}


def megablox_obstacle(d_model: int, block: int) -> str | None:
    """Why Megablox cannot run these shapes on a TPU, or None."""
    if d_model % LANES or block % LANES:
        return f"Megablox needs d_model and block in multiples of {LANES}, not {d_model} and {block}"
    return None


@dataclasses.dataclass(frozen=True)
class Megablox:
    """`gmm` and `tgmm` of `jax.experimental.pallas.ops.tpu.megablox`; interpreted where there is no TPU."""

    interpret: bool

    def rows(self, x_RI: jax.Array, w_NIO: jax.Array, size_N: jax.Array, *, transposed: bool) -> jax.Array:
        """See `GroupedMatmul.rows`."""
        inner, outer = w_NIO.shape[1:][::-1] if transposed else w_NIO.shape[1:]
        tiling = self._tiling(x_RI.shape[0], inner, outer)
        return _kernels().gmm(
            x_RI, w_NIO, size_N, jnp.float32, tiling, transpose_rhs=transposed, interpret=self.interpret
        )

    def weights(self, x_RI: jax.Array, y_RO: jax.Array, size_N: jax.Array) -> jax.Array:
        """See `GroupedMatmul.weights`."""
        tiling = self._tiling(x_RI.shape[0], x_RI.shape[1], y_RO.shape[1])
        return _kernels().tgmm(x_RI.swapaxes(0, 1), y_RO, size_N, jnp.float32, tiling, interpret=self.interpret)

    def _tiling(self, rows: int, inner: int, outer: int) -> tuple[int, int, int]:
        return min(512, rows), min(1024, inner), min(512, outer)


@functools.cache
def _kernels() -> Any:
    """The module: the package's own attribute of that name is a function."""
    return importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")


@dataclasses.dataclass(frozen=True)
class MosaicGpu:
    """Hopper kernels `ragged_dot` and `transposed_ragged_dot` of `jax.experimental.pallas.ops.gpu`."""

    def rows(self, x_RI: jax.Array, w_NIO: jax.Array, size_N: jax.Array, *, transposed: bool) -> jax.Array:
        """See `GroupedMatmul.rows`."""
        from jax.experimental.pallas.ops.gpu.ragged_dot_mgpu import ragged_dot

        return ragged_dot(
            x_RI,
            w_NIO,
            group_sizes=size_N,
            **_MOSAIC_TILES,
            transpose_rhs=transposed,
        ).astype(jnp.float32)

    def weights(self, x_RI: jax.Array, y_RO: jax.Array, size_N: jax.Array) -> jax.Array:
        """See `GroupedMatmul.weights`."""
        from jax.experimental.pallas.ops.gpu.transposed_ragged_dot_mgpu import transposed_ragged_dot

        return transposed_ragged_dot(
            x_RI,
            y_RO,
            group_sizes=size_N,
            **_MOSAIC_TILES,
        ).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Plain:
    """The definition, group by group: [N, R, I] in memory, for tests and probes only."""

    def rows(self, x_RI: jax.Array, w_NIO: jax.Array, size_N: jax.Array, *, transposed: bool) -> jax.Array:
        """See `GroupedMatmul.rows`."""
        own_RN = self._own(x_RI.shape[0], size_N)
        return jnp.einsum("rn,ri,noi->ro" if transposed else "rn,ri,nio->ro", own_RN, *map(_float32, (x_RI, w_NIO)))

    def weights(self, x_RI: jax.Array, y_RO: jax.Array, size_N: jax.Array) -> jax.Array:
        """See `GroupedMatmul.weights`."""
        return jnp.einsum("rn,ri,ro->nio", self._own(x_RI.shape[0], size_N), *map(_float32, (x_RI, y_RO)))

    def _own(self, rows: int, size_N: jax.Array) -> jax.Array:
        row_R, end_N = jnp.arange(rows)[:, None], jnp.cumsum(size_N)
        return ((row_R < end_N) & (row_R >= end_N - size_N)).astype(jnp.float32)


def _float32(values: jax.Array) -> jax.Array:
    return values.astype(jnp.float32)


@functools.cache
def probe_gpu() -> str | None:
    """Why the GPU's grouped matmul cannot be used, or None after it gave the right numbers on a small case."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return f"the default device is a {device.platform}, not a GPU"
    capability = str(getattr(device, "compute_capability", "unknown"))
    if not capability.startswith("9."):
        return f"jax carries grouped matmul kernels for compute capability 9.x, and this is {capability}"
    try:
        return disagreement(MosaicGpu())
    except Exception as error:
        return f"the kernel does not run here: {type(error).__name__}: {str(error).splitlines()[0][:120]}"


def disagreement(kernel: GroupedMatmul) -> str | None:
    """Compares a kernel with the definition, an empty and an odd group included."""
    rng = np.random.default_rng(0)
    shapes = ((256, 128), (256, 256), (4, 128, 256))
    arguments = [rng.normal(size=shape).astype(jnp.bfloat16) for shape in shapes]
    arguments.append(np.array([100, 0, 129, 27], np.int32))

    def results(kernel: GroupedMatmul) -> dict[str, np.ndarray]:
        def run(x_RI: jax.Array, y_RO: jax.Array, w_NIO: jax.Array, size_N: jax.Array) -> dict[str, jax.Array]:
            return {
                "rows": kernel.rows(x_RI, w_NIO, size_N, transposed=False),
                "transposed rows": kernel.rows(y_RO, w_NIO, size_N, transposed=True),
                "weights": kernel.weights(x_RI, y_RO, size_N),
            }

        # Compiled apart from being called: a layer may ask for this check in the middle of being traced itself.
        return jax.tree.map(np.asarray, jax.jit(run).lower(*arguments).compile()(*arguments))

    expected = results(Plain())
    for name, got in results(kernel).items():
        if not np.allclose(got, expected[name], rtol=0.05, atol=0.5):
            return f"the kernel's {name} differ from the definition by {np.abs(got - expected[name]).max():.2g}"
    return None
