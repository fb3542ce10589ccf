"""What a training plugs into the loop: parameters, a loss and batches."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any


class Objective(abc.ABC):
    """The one interface between a model and `fit`. See `docs/training.md` for an example.

    Attributes:
        units_per_step: how many units of progress (tokens, rows, ...) one step works through; for the speed.
        unit: the name of that unit.
        frozen: a pytree of arrays that `loss` reads and nobody trains. It reaches the jitted step as an
            argument, is never donated and never baked into the compiled program.
    """

    units_per_step: int
    unit: str = "tokens"
    frozen: Any = ()

    @abc.abstractmethod
    def init(self, key: Any) -> Any:
        """Returns the pytree of trainable arrays. The loop copies them, so they may also be in `frozen`."""

    @abc.abstractmethod
    def loss(self, params: Any, frozen: Any, batch: Any, key: Any) -> tuple[Any, Mapping[str, Any]]:
        """Returns the scalar float32 loss and named scalars to log.

        Pure and traceable: the loop compiles it once. `key` is a JAX random key of this step alone.
        """

    @abc.abstractmethod
    def batch(self, step: int) -> Any:
        """Returns the pytree of numpy arrays of step `step`, counted from 0, or of arrays that lie on a mesh.

        A pure function of `step`: a resumed run asks for the steps that it repeats, and must get the same
        bits. Shapes and dtypes are the same at every step. The arrays must not be written to afterwards.
        """
