"""The training state and the one compiled step that advances it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from moe_lab.errors import LabError
from moe_lab.training.metrics import TIMING_FIELDS
from moe_lab.training.objective import Objective
from moe_lab.training.optimizer import learning_rate, make_optimizer
from moe_lab.training.spec import TrainSpec

OWN_METRICS = ("loss", "learning_rate", "grad_norm")
"""What the loop logs of every step, before the metrics of the objective."""

# Steps draw their keys from 0 upwards; the last number of fold_in's range is left for the initial parameters.
_INIT = 2**32 - 1

State = dict[str, Any]
Step = Callable[[State, Any, Any, Any], tuple[State, dict[str, jax.Array]]]


def initial_state(objective: Objective, spec: TrainSpec) -> State:
    """Returns `params`, `opt_state`, the count of steps and the first step that was not finite (-1: none)."""
    params = jax.tree.map(_own, objective.init(jax.random.fold_in(jax.random.key(spec.seed), _INIT)))
    return {
        "params": params,
        "opt_state": make_optimizer(spec).init(params),
        "step": jnp.zeros((), jnp.int32),
        "first_nonfinite": jnp.full((), -1, jnp.int32),
    }


def _own(leaf: Any) -> jax.Array:
    """Copies an array: the step donates it, and the objective may hold it in `frozen` or in two places.

    The explicit dtype also drops JAX's weak types, which would make the second step compile again.
    """
    array = jnp.asarray(leaf)
    return jnp.array(array, dtype=array.dtype, copy=True)


def abstract(state: State) -> State:
    """Returns the shapes, dtypes and placement of a state, into which a checkpoint is restored."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def placement(*trees: Any) -> Sharding | None:
    """Returns where a leaf goes that says nothing itself: onto all devices of the mesh that `trees` lie on.

    None, the default device, if no leaf lies on a mesh.
    """
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(trees)]
    meshes = {sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)}
    assert len(meshes) <= 1, f"parameters lie on {len(meshes)} meshes"
    return NamedSharding(meshes.pop(), PartitionSpec()) if meshes else None


def place(tree: Any, where: Sharding | None) -> Any:
    """Puts a tree onto the devices, leaving alone what already lies on the mesh."""

    def put(leaf: Any) -> Any:
        if isinstance(getattr(leaf, "sharding", None), NamedSharding):
            return leaf
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            # Keys do not travel to other processes' devices; their numbers do.
            return jax.random.wrap_key_data(jax.device_put(jax.random.key_data(leaf), where))
        return jax.device_put(leaf, where)

    return jax.tree.map(put, tree)


def compile_step(
    objective: Objective, spec: TrainSpec, state: State, frozen: Any, batch: Any, key: Any, where: Sharding | None
) -> Step:
    """Compiles the step for these very shapes and places.

    Compiled ahead of time, it cannot compile again unnoticed: a batch of another shape is an error. The metrics come
    out at `where`, from `placement`.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(_step_function(objective, spec), donate_argnums=0, out_shardings=(placed, where))
    return step.lower(state, frozen, batch, key).compile()


def _step_function(objective: Objective, spec: TrainSpec) -> Step:
    optimizer, schedule = make_optimizer(spec), learning_rate(spec)

    def step(state: State, frozen: Any, batch: Any, key: Any) -> tuple[State, dict[str, jax.Array]]:
        index = state["step"]

        def loss_of(params: Any) -> tuple[jax.Array, Mapping[str, Any]]:
            loss, metrics = objective.loss(params, frozen, batch, jax.random.fold_in(key, index))
            _check_scalars(loss, metrics)
            return loss, metrics

        (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
        grad_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        seen = state["first_nonfinite"]
        new_state = {
            "params": optax.apply_updates(state["params"], updates),
            "opt_state": opt_state,
            "step": index + 1,
            "first_nonfinite": jnp.where((seen < 0) & ~finite, index, seen),
        }
        return new_state, {"loss": loss, "learning_rate": schedule(index), "grad_norm": grad_norm, **metrics}

    return step


def _check_scalars(loss: Any, metrics: Mapping[str, Any]) -> None:
    """Refuses, while tracing, what could not be logged as one number."""
    if jnp.shape(loss) != () or jnp.result_type(loss) != jnp.float32:
        raise LabError(
            f"the objective's loss is {jnp.result_type(loss)}{list(jnp.shape(loss))}: return a float32 scalar"
        )
    for name, value in metrics.items():
        if name in (*OWN_METRICS, *TIMING_FIELDS, "step"):
            raise LabError(f'the objective\'s metric "{name}" is a name that the loop writes itself: rename it')
        if jnp.shape(value) != ():
            raise LabError(f'the objective\'s metric "{name}" has shape {jnp.shape(value)}: return a scalar')
