"""What a backend of the routed layer says of itself.

Specs and listings read it, so nothing heavy is imported before a backend runs or says whether it can.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from moe_lab.errors import Unavailable

if TYPE_CHECKING:
    import jax
    from jax.typing import DTypeLike

    from moe_lab.nn.pool import Pool, Routing

Platform = Literal["cpu", "gpu", "tpu"]

Run: TypeAlias = "Callable[[jax.Array, Pool, Routing, str, int | None], jax.Array]"
"""`run(h_TD, pool, routing, activation, budget) -> y_TD`, as `expert_ffn` defines it; blocks have the tokens' dtype."""


class Drops(enum.Enum):
    """What a backend leaves out of its output."""

    NOTHING = "nothing"
    BEYOND_BUDGET = "nothing, or what exceeds a budget that was given"
    BEYOND_CAPACITY = "what exceeds its capacity"


class LayerShape(NamedTuple):
    """What a backend may be unable to run: width of a token, hidden units of a block, dtype of the tokens."""

    d_model: int
    block: int
    dtype: DTypeLike


class Auto(NamedTuple):
    """When `auto` takes a backend: it has the highest rank of those that run a layer on a platform."""

    rank: int
    reason: str
    """One clause for the person who runs it; `{platform}` stands for the platform."""


def no_obstacle(layer: LayerShape | None) -> None:
    """Of a backend that runs any layer wherever its platform is."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to compute the routed layer.

    Attributes:
        name: what compositions and commands call it.
        where: where it runs, for people.
        how: how it works, in a clause.
        run: the layer itself.
        platform: the only one that it runs on; None: any.
        drops: what it leaves out.
        beyond_budget: block rows that `run` leaves out, int32, for a pool, a routing and a budget (None only where it
            drops what exceeds its capacity). Required of a backend that may drop something.
        obstacle: why the default device cannot run this layer, or, for None, any layer; None if it can.
        auto: when `auto` takes it; None: it runs only where it is named.
        tests_only: no composition may name it.
    """

    name: str
    where: str
    how: str
    run: Run
    platform: Platform | None = None
    drops: Drops = Drops.NOTHING
    beyond_budget: Callable[[Pool, Routing, int | None], jax.Array] | None = None
    obstacle: Callable[[LayerShape | None], str | None] = no_obstacle
    auto: Auto | None = None
    tests_only: bool = False

    def __post_init__(self) -> None:
        assert (self.beyond_budget is None) == (self.drops is Drops.NOTHING), f"{self.name}: what drops is counted"
        assert self.auto is None or self.drops is not Drops.BEYOND_CAPACITY, (
            f"{self.name}: auto takes what drops nothing"
        )

    @property
    def composable(self) -> bool:
        """Whether a composition may name it: what drops tokens unasked computes another model."""
        return not self.tests_only and self.drops is not Drops.BEYOND_CAPACITY

    def may_drop(self, budget: int | None) -> bool:
        """Whether it can meet a routing that it has no room for."""
        return self.drops is Drops.BEYOND_CAPACITY or (self.drops is Drops.BEYOND_BUDGET and budget is not None)

    def rows_beyond_budget(self, pool: Pool, routing: Routing, budget: int | None = None) -> jax.Array:
        """Block rows that `run` with the same arguments leaves out: int32, and 0 where nothing is dropped."""
        import jax.numpy as jnp

        if self.beyond_budget is None or not self.may_drop(budget):
            return jnp.zeros((), jnp.int32)
        return self.beyond_budget(pool, routing, budget)

    def require(self) -> None:
        """Refuses where the default device cannot run it. Compiling for another machine needs no such check.

        Raises:
            Unavailable: it needs another platform, or has an obstacle here.
        """
        import jax

        here = jax.default_backend()
        if self.platform not in (None, here):
            raise Unavailable(f'backend "{self.name}" needs a {self.platform}, and this is a {here}; use backend: auto')
        obstacle = self.obstacle(None)
        if obstacle is not None:
            raise Unavailable(f'backend "{self.name}" cannot run here: {obstacle}; use backend: auto')
