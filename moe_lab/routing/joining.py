"""A module joins a trained router: what the router says of the others stays, only the added one's part is learned.

Of every parameter of a router that modules can join, what belongs to the last modules lies behind the rest, along one
axis. So the parameters of the trained router are the front of those of the joined one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moe_lab.routing.router import Router
from moe_lab.routing.space import CandidateSpace


class Seam:
    """Where the parameters of a trained router end in those of a wider one of its class.

    Args:
        whole: parameters of the wider router.
        known: those of the trained one.
    """

    def __init__(self, whole: nnx.State, known: nnx.State):
        self._axes = [_grown_axis(a, b) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(known), strict=True)]

    def behind(self, whole: nnx.State, known: nnx.State) -> nnx.State:
        """The added modules' part of the wider router's parameters."""
        arrays, tree = jax.tree.flatten(whole)
        sizes = [old.shape[axis] for old, axis in zip(jax.tree.leaves(known), self._axes, strict=True)]
        parts = [jnp.split(a, [n], axis)[1] for a, n, axis in zip(arrays, sizes, self._axes, strict=True)]
        return jax.tree.unflatten(tree, parts)

    def beside(self, known: nnx.State, added: nnx.State) -> nnx.State:
        """The inverse: the trained router's parameters with those of the added modules behind them."""
        arrays, tree = jax.tree.flatten(known)
        pairs = zip(arrays, jax.tree.leaves(added), self._axes, strict=True)
        return jax.tree.unflatten(tree, [jnp.concatenate([old, new], axis) for old, new, axis in pairs])


def take_over(router: Router, known: Router) -> None:
    """Copies every parameter of a trained router into the front of that of a wider one of its class."""
    whole, theirs = nnx.state(router, nnx.Param), nnx.state(known, nnx.Param)
    seam = Seam(whole, theirs)
    nnx.update(router, seam.beside(theirs, seam.behind(whole, theirs)))


def joined_router(known: Router, space: CandidateSpace, d_model: int, *, rngs: nnx.Rngs) -> Router:
    """A fresh router of the same class for a wider space, whose first modules are those of the trained one."""
    old = len(known.space.modules)
    assert space.modules[:old] == known.space.modules, "added modules come behind the modules that the router knows"
    return type(known)(known.joined_config(len(space.modules) - old), space, d_model, rngs=rngs)


def _grown_axis(whole: Any, known: Any) -> int:
    """Along which a parameter grew."""
    axes = [axis for axis in range(whole.ndim) if whole.shape[axis] != known.shape[axis]]
    assert len(axes) == 1, f"from {known.shape} to {whole.shape}: a parameter grows along one axis as modules join"
    return axes[0]
