"""How long the routed layers of a composed model take at each price: whether it really runs what its router chose."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial, reduce
from pathlib import Path

import jax
import jax.numpy as jnp

from moe_lab.compose.model import ComposedModel
from moe_lab.data import Batch
from moe_lab.errors import LabError
from moe_lab.evaluation.passes import HeldOut
from moe_lab.evaluation.spec import MeasuredText
from moe_lab.jobs.outcome_table import measuring_batches
from moe_lab.jobs.outcomes import composed_corpora
from moe_lab.jobs.workspace import Workspace
from moe_lab.nn.decoder import RunLayer
from moe_lab.nn.expert_ffn import choose_backend
from moe_lab.nn.pool import Pool, Routing
from moe_lab.routing.router import normalised

SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
"""Costs to look for, as shares of the cost at price 0."""
PRICES = (1e-4, 1e2)
HALVINGS = 14
"""Steps of the search for a price: they narrow it to a thousandth of its size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PricedTime:
    """One price: what the routing costs, and what it takes."""

    price: float | None  # nats per token for the dearest candidate; None: nobody runs anything
    cost: float  # multiply-adds per token in the routed layers, without the router's own
    milliseconds: float  # all routed layers, all tokens; the least of all rounds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """The times of all prices, the dearest first and nothing at all last, measured in turns."""

    tokens: int
    backend: str
    times: tuple[PricedTime, ...]


def measure_speed(workspace: Workspace, composition: str, base: Path, settings: MeasuredText, rounds: int) -> Speed:
    """Times the routed layers, on their own, with the routings that the router gives at several prices.

    Args:
        workspace: where the parts are.
        composition: a composition config or a lockfile.
        base: the folder that paths are relative to.
        settings: which text, and how much of it.
        rounds: every round visits every price.
    """
    if workspace.mesh is not None:
        raise LabError("speed is measured on one device; leave --mesh out")
    model = workspace.load_model(workspace.find_lock(composition, base))
    if model.router.needs_outcomes:
        raise LabError(f"{composition}: its router looks at outcomes and cannot be timed; compose one that can be run")
    corpora = composed_corpora(workspace, model, settings.domains, base)
    batches = measuring_batches(corpora, settings.rows, settings.seq_len)
    heldout = HeldOut(domains=tuple(corpus.name for corpus in corpora), batches=tuple(batches))
    priced = _PricedRoutings(model, heldout.rows)
    dearest = priced.cost(0.0)
    prices = sorted({0.0 if share == 1 else priced.price_for(share * dearest) for share in SHARES})
    if dearest == 0 or len(prices) == 1 or priced.cost(prices[-1]) == dearest:
        raise LabError(
            f"{composition}: its routing costs {dearest:,.0f} multiply-adds per token at every price, so there is "
            f"nothing to compare; compose a router that reads the price, such as gain"
        )
    routings = {price: priced.routing(price) for price in prices}
    nothing = routings[0.0]._replace(width=jnp.zeros_like(routings[0.0].width))
    milliseconds = _time(workspace, model, priced.hidden_TD, [*routings.values(), nothing], rounds)
    costs = [*map(priced.cost, prices), 0.0]
    return Speed(
        tokens=len(priced.hidden_TD),
        backend=str(choose_backend(d_model=model.trunk.spec.d_model, block=model.trunk.spec.block)),
        times=tuple(
            PricedTime(price=price, cost=cost, milliseconds=took)
            for price, cost, took in zip([*prices, None], costs, milliseconds, strict=True)
        ),
    )


class _PricedRoutings:
    """What the router decides on one batch at any price."""

    def __init__(self, model: ComposedModel, batch: Batch):
        self.model, self.batch, self.arrays = model, batch, model.arrays()
        self.state_BSD = model.enter(self.arrays, batch)
        self.hidden_TD = normalised(self.state_BSD).reshape(-1, self.state_BSD.shape[-1])
        self._decided: dict[float, tuple[float, Routing]] = {}

    def cost(self, price: float) -> float:
        """Multiply-adds per token."""
        return self._decide(price)[0]

    def routing(self, price: float) -> Routing:
        """In the pool's terms, [T, K]."""
        return self._decide(price)[1]

    def price_for(self, cost: float) -> float:
        """The least price, nearly, that costs no more than `cost`: a dearer price never buys more."""
        low, high = map(math.log, PRICES)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.cost(math.exp(middle)) <= cost else (middle, high)
        return math.exp(high)

    def _decide(self, price: float) -> tuple[float, Routing]:
        if price not in self._decided:
            model = self.model
            decision = model.run(self.arrays, self.batch, self.state_BSD, available_E=model.available(), price=price)
            expert_BSK = self.arrays.pool_index_E[decision.expert_BSK]
            routing = Routing(expert_BSK, decision.width_BSK, jnp.ones(expert_BSK.shape, jnp.float32)).flat()
            self._decided[price] = float(decision.blocks_BS.mean()) * model.multiply_adds_per_block, routing
        return self._decided[price]


@partial(jax.jit, static_argnums=(0, 1))
def _routed_layers(
    run_layer: RunLayer, activation: str, pools: dict[int, Pool], hidden_TD: jax.Array, routing: Routing
) -> jax.Array:
    """All routed layers on one state: what they compute does not change how long they take."""
    layers = (run_layer(hidden_TD, pool, routing, activation=activation).y_TD for pool in pools.values())
    return reduce(jnp.add, layers)


def _seconds(run: Callable[[Routing], jax.Array], routing: Routing) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run(routing))
    return time.perf_counter() - started


def _time(
    workspace: Workspace, model: ComposedModel, hidden_TD: jax.Array, routings: Sequence[Routing], rounds: int
) -> list[float]:
    """Milliseconds for each routing, the least of all rounds. One compiled program serves them all."""
    run = partial(_routed_layers, model.run_layer, model.trunk.spec.activation, dict(model.pools.layers), hidden_TD)
    _seconds(run, routings[0])  # compiles
    taken: list[list[float]] = [[] for _ in routings]
    with workspace.progress.stage("routed layers at each price", rounds, "rounds") as shown:
        for done in range(1, rounds + 1):
            for routing, times in zip(routings, taken, strict=True):
                times.append(_seconds(run, routing))
            each = sum(map(sum, taken)) / done
            shown.update(done, None, 1 / each, each)
    return [1e3 * min(times) for times in taken]
