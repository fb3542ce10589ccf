"""Where the arrays of a forward pass lie. On one device there is nothing to say; `parallel` says it for a mesh."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Layout:
    """One device.

    Attributes:
        recompute: makes layers again for their gradient instead of keeping what they computed on the way.
    """

    recompute: bool = False

    @property
    def devices(self) -> int:
        """Among how many the tokens are shared out."""
        return 1

    @property
    def spreads(self) -> bool:
        """Whether arrays of a pass lie in parts, which XLA cuts its own operations into but no kernel of ours."""
        return False

    def gather(self, params: T) -> T:
        """Parameters where they are multiplied."""
        return params

    def spread(self, x_BSD: T) -> T:
        """Hidden states between layers."""
        return x_BSD


ONE_DEVICE = Layout()
