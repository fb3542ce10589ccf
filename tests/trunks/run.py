"""A checkpoint's logits by our own forward pass, without a registry."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_lab.compose.parts import state_from_tensors
from moe_lab.nn.decoder import abstract_trunk
from moe_lab.nn.precision import FLOAT32, Precision, cast_params
from moe_lab.trunks.checkpoint import Checkpoint


def checkpoint_logits(checkpoint: Checkpoint, tokens_T: np.ndarray, precision: Precision = FLOAT32) -> np.ndarray:
    """Float32[T, V] of one document."""
    graph, abstract = abstract_trunk(checkpoint.spec, precision)
    state = cast_params(state_from_tensors(abstract, checkpoint.tensors, "trunk"), precision)
    tokens_BS = jnp.asarray(tokens_T)[None]
    ones_BS, positions_BS = jnp.ones_like(tokens_BS), jnp.arange(len(tokens_T))[None]
    run = nnx.jit(lambda trunk: trunk(tokens_BS, ones_BS, positions_BS))
    return np.asarray(run(nnx.merge(graph, state))[0])
